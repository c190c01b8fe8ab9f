/* SPDX-License-Identifier: Apache-2.0
 * From a matrix's packing to the code compiled for it: included by kernels_*.c after their own matvec_of and unpack_of,
 * which take the number of extra bits and the scaling as constants. */

static void matvec(const Matrix *w, size_t block, const Activations *x, size_t row, float *y) {
    switch (w->packing.scaling * 8 + w->packing.extra_bits) {
    case SCALE_F16 * 8 + 0: matvec_of(w, block, x, row, y, 0, SCALE_F16); break;
    case SCALE_F16 * 8 + 1: matvec_of(w, block, x, row, y, 1, SCALE_F16); break;
    case SCALE_F16 * 8 + 4: matvec_of(w, block, x, row, y, 4, SCALE_F16); break;
    case SCALE_F16_MIN * 8 + 0: matvec_of(w, block, x, row, y, 0, SCALE_F16_MIN); break;
    case SCALE_F16_MIN * 8 + 1: matvec_of(w, block, x, row, y, 1, SCALE_F16_MIN); break;
    case SCALE_SUPER * 8 + 0: matvec_of(w, block, x, row, y, 0, SCALE_SUPER); break;
    case SCALE_SUPER * 8 + 1: matvec_of(w, block, x, row, y, 1, SCALE_SUPER); break;
    default: matvec_of(w, block, x, row, y, 2, SCALE_HALVES);
    }
}

static void unpack(const Matrix *w, size_t block, size_t group, size_t count, Panel *panel) {
    switch (w->packing.extra_bits) {
    case 0: unpack_of(w, block, group, count, panel, 0); break;
    case 1: unpack_of(w, block, group, count, panel, 1); break;
    case 2: unpack_of(w, block, group, count, panel, 2); break;
    default: unpack_of(w, block, group, count, panel, 4);
    }
}

/* SPDX-License-Identifier: Apache-2.0
 * From a matrix's packing to the code compiled for it: included by kernels_*.c after their own matvec_of and unpack_of,
 * which take the number of extra bits and the scaling as constants. */

#define OF_PACKING(packing, call)                                    \
    switch ((packing).scaling * 8 + (packing).extra_bits) {          \
    case SCALE_F16 * 8 + 0: call(0, SCALE_F16); break;               \
    case SCALE_F16 * 8 + 1: call(1, SCALE_F16); break;               \
    case SCALE_F16 * 8 + 4: call(4, SCALE_F16); break;               \
    case SCALE_F16_MIN * 8 + 0: call(0, SCALE_F16_MIN); break;       \
    case SCALE_F16_MIN * 8 + 1: call(1, SCALE_F16_MIN); break;       \
    case SCALE_SUPER * 8 + 0: call(0, SCALE_SUPER); break;           \
    case SCALE_SUPER * 8 + 1: call(1, SCALE_SUPER); break;           \
    default: call(2, SCALE_HALVES);                                  \
    }

static void matvec(const Matrix *w, size_t block, const Activations *x, size_t row, float *y) {
#define MATVEC(bits, scaling) matvec_of(w, block, x, row, y, bits, scaling)
    OF_PACKING(w->packing, MATVEC)
}

static void unpack(const Matrix *w, size_t block, size_t group, size_t count, Panel *panel) {
#define UNPACK(bits, scaling) unpack_of(w, block, group, count, panel, bits, scaling)
    OF_PACKING(w->packing, UNPACK)
}

/* SPDX-License-Identifier: Apache-2.0
 * Memory for weights and caches: zeroed pages, huge ones where the system has them, freed back to the system.
 * A page is there from its first use on; a huge one all at once, which is waste where little of it will be used. */
#define _DEFAULT_SOURCE
#include <stdlib.h>

#include "internal.h"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>

enum { HUGE_PAGE = 1 << 21 };

static size_t rounded(size_t bytes) {
    size_t unit = bytes >= HUGE_PAGE ? HUGE_PAGE : 4096;
    return (bytes + unit - 1) / unit * unit;
}

void *gemmary_pages(size_t bytes, bool is_whole) {
    if (!bytes || bytes > (size_t)1 << 46) return NULL;
    size_t size = rounded(bytes), spare = size >= HUGE_PAGE ? HUGE_PAGE : 0;
    char *start = mmap(NULL, size + spare, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) return NULL;
    if (spare) { /* huge pages want their own alignment: give back what lies before and after */
        size_t before = (HUGE_PAGE - (uintptr_t)start % HUGE_PAGE) % HUGE_PAGE;
        if (before) munmap(start, before);
        if (before < spare) munmap(start + before + size, spare - before);
        start += before;
#ifdef MADV_HUGEPAGE
        madvise(start, size, is_whole ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#else
        (void)is_whole;
#endif
    }
    return start;
}

void gemmary_pages_free(void *pages, size_t bytes) {
    if (pages) munmap(pages, rounded(bytes));
}

#else

void *gemmary_pages(size_t bytes, bool is_whole) {
    (void)is_whole;
    return bytes ? calloc(1, bytes) : NULL;
}

void gemmary_pages_free(void *pages, size_t bytes) {
    (void)bytes;
    free(pages);
}

#endif

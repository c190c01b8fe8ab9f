/* SPDX-License-Identifier: Apache-2.0
 * Memory for weights and caches: zeroed pages, huge ones where the system has them, freed back to the system.
 *
 * A page is there from its first use on; a huge one all at once, which is waste where little of it will be used. On a
 * virtual machine that has given its free memory back to the host it takes milliseconds instead of a tenth of one, where
 * small pages come from leftovers that the host has not taken; weights are read from those as fast, to 1% in the median. */
#define _GNU_SOURCE
#include <stdlib.h>

#include "internal.h"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <time.h>

enum { PAGE = 4096, HUGE_PAGE = 1 << 21 };
enum { LATE = 2000000, MOST_LATE = 16 }; /* nanoseconds: who clears 1 GB/s is in time; pages that may be late */

static size_t rounded(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

static size_t size_of(size_t bytes) { return rounded(bytes, bytes >= HUGE_PAGE ? HUGE_PAGE : PAGE); }

void *gemmary_pages(size_t bytes, bool is_whole) {
    if (!bytes || bytes > (size_t)1 << 46) return NULL;
    size_t size = size_of(bytes), spare = size >= HUGE_PAGE ? HUGE_PAGE : 0;
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
    if (pages) munmap(pages, size_of(bytes));
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

#if defined(__linux__) && defined(MADV_HUGEPAGE)

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

void gemmary_pages_get(void *pages, size_t bytes, size_t first, size_t end, atomic_int *late) {
    if (bytes < HUGE_PAGE) return;
    char *page = (char *)pages + rounded(first, HUGE_PAGE), *stop = (char *)pages + rounded(end, HUGE_PAGE);
    for (; page < stop && atomic_load(late) < MOST_LATE; page += HUGE_PAGE) {
        int64_t start = nanoseconds();
        *(volatile char *)page = 0;
        if (nanoseconds() - start > LATE) atomic_fetch_add(late, 1);
    }
    if (page < stop) madvise(page, (size_t)(stop - page), MADV_NOHUGEPAGE);
}

#else

void gemmary_pages_get(void *pages, size_t bytes, size_t first, size_t end, atomic_int *late) {
    (void)pages, (void)bytes, (void)first, (void)end, (void)late;
}

#endif

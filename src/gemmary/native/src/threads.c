/* SPDX-License-Identifier: Apache-2.0
 * A team of threads: one parallel region for each forward pass, a barrier between its steps, loops shared by taking.
 *
 * Who waits spins for a moment, because steps follow each other within microseconds, then lets others run, because one
 * of them may be who is waited for, and then sleeps, so that an idle engine costs nothing. The last to arrive at a barrier resets the loop's counter while all others stand still.
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "internal.h"

enum { SPINS = 2000, YIELDS = 50, LINE = 64 };

typedef struct { /* a number that others wait to see change */
    _Alignas(LINE) atomic_uint value;
    atomic_int sleepers;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
} Signal;

struct Team {
    Signal start, barrier;
    _Alignas(LINE) atomic_size_t next; /* of the loop that is shared now */
    _Alignas(LINE) atomic_int arrived;
    atomic_bool ends;
    int size, opened;
    Work *work;
    void *context;
    pthread_t threads[];
};

typedef struct {
    Team *team;
    int thread;
} Member;

static inline void breathe(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void signal_open(Signal *s) {
    atomic_init(&s->value, 0);
    atomic_init(&s->sleepers, 0);
    pthread_mutex_init(&s->mutex, NULL);
    pthread_cond_init(&s->changed, NULL);
}

static void signal_close(Signal *s) {
    pthread_mutex_destroy(&s->mutex);
    pthread_cond_destroy(&s->changed);
}

static void signal_raise(Signal *s) {
    atomic_fetch_add(&s->value, 1);
    if (!atomic_load(&s->sleepers)) return;
    pthread_mutex_lock(&s->mutex);
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
}

static void signal_wait(Signal *s, unsigned seen) {
    for (int i = 0; i < SPINS + YIELDS; i++) {
        if (atomic_load_explicit(&s->value, memory_order_acquire) != seen) return;
        if (i < SPINS) breathe();
        else sched_yield();
    }
    pthread_mutex_lock(&s->mutex);
    atomic_fetch_add(&s->sleepers, 1);
    while (atomic_load(&s->value) == seen) pthread_cond_wait(&s->changed, &s->mutex);
    atomic_fetch_sub(&s->sleepers, 1);
    pthread_mutex_unlock(&s->mutex);
}

void gemmary_team_wait(Team *team) {
    if (team->size == 1) {
        atomic_store_explicit(&team->next, 0, memory_order_relaxed);
        return;
    }
    unsigned seen = atomic_load_explicit(&team->barrier.value, memory_order_acquire);
    if (atomic_fetch_add(&team->arrived, 1) + 1 == team->size) {
        atomic_store(&team->arrived, 0);
        atomic_store(&team->next, 0);
        signal_raise(&team->barrier);
    } else {
        signal_wait(&team->barrier, seen);
    }
}

size_t gemmary_team_take(Team *team, size_t count, size_t *index, size_t total) {
    size_t first = atomic_fetch_add_explicit(&team->next, count, memory_order_relaxed);
    *index = first;
    return first >= total ? 0 : total - first < count ? total - first : count;
}

static void *member_main(void *argument) {
    Member member = *(Member *)argument;
    free(argument);
    Team *team = member.team;
    for (unsigned seen = 0;; seen++) {
        signal_wait(&team->start, seen);
        if (atomic_load(&team->ends)) return NULL;
        team->work(team->context, member.thread);
        gemmary_team_wait(team);
    }
}

Team *gemmary_team_open(int num_threads) {
    size_t bytes = sizeof(Team) + (size_t)num_threads * sizeof(pthread_t);
    Team *team = aligned_alloc(LINE, (bytes + LINE - 1) / LINE * LINE);
    if (!team) return NULL;
    memset(team, 0, bytes);
    signal_open(&team->start);
    signal_open(&team->barrier);
    team->size = num_threads;
    for (team->opened = 1; team->opened < num_threads; team->opened++) {
        Member *member = malloc(sizeof *member);
        if (member) *member = (Member){team, team->opened};
        if (!member || pthread_create(&team->threads[team->opened], NULL, member_main, member)) {
            free(member);
            gemmary_team_close(team);
            return NULL;
        }
    }
    return team;
}

void gemmary_team_run(Team *team, Work *work, void *context) {
    team->work = work;
    team->context = context;
    if (team->size > 1) signal_raise(&team->start);
    work(context, 0);
    gemmary_team_wait(team);
}

int gemmary_team_size(const Team *team) { return team->size; }

void gemmary_team_close(Team *team) {
    if (!team) return;
    atomic_store(&team->ends, true);
    signal_raise(&team->start);
    for (int i = 1; i < team->opened; i++) pthread_join(team->threads[i], NULL);
    signal_close(&team->start);
    signal_close(&team->barrier);
    free(team);
}

/* Threads that wait by looking for a short while and then sleep: a step has hundreds of meeting points, each a fraction
 * of a microsecond, but where other processes need the cores a waiting thread must give its own away. */
#include "team.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#if defined(__x86_64__)
#define pause_briefly() __builtin_ia32_pause()
#else
#define pause_briefly() ((void)0)
#endif

/* How often to look before sleeping: for 50 microseconds at a meeting; for half a millisecond between two steps, where Python
 * chooses the next token, since to wake up takes longer than that choice. */
enum { MEETING_LOOKS = 4000, START_LOOKS = 40000 };

/* A number that only grows, and those who wait for it to change. */
typedef struct {
    _Alignas(64) atomic_uint value;
    atomic_int n_sleeping;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
} Signal;

typedef struct {
    Team *team;
    int number;
    pthread_t thread;
} Member;

struct Team {
    Signal start, meeting;
    _Alignas(64) atomic_int n_arrived;
    int n_threads, n_started;
    Work work;
    void *argument;
    Member *members;
};

static int signal_open(Signal *s) {
    atomic_init(&s->value, 0);
    atomic_init(&s->n_sleeping, 0);
    return pthread_mutex_init(&s->mutex, NULL) || pthread_cond_init(&s->changed, NULL);
}

static void signal_raise(Signal *s) {
    atomic_fetch_add(&s->value, 1);
    if (atomic_load(&s->n_sleeping) == 0) return;
    pthread_mutex_lock(&s->mutex);
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
}

static void signal_await(Signal *s, unsigned old, int looks) {
    for (int look = 0; look < looks; look++) {
        if (atomic_load_explicit(&s->value, memory_order_acquire) != old) return;
        pause_briefly();
    }
    pthread_mutex_lock(&s->mutex);
    atomic_fetch_add(&s->n_sleeping, 1); /* before the last look: whoever raises it later sees a sleeper */
    while (atomic_load(&s->value) == old) pthread_cond_wait(&s->changed, &s->mutex);
    atomic_fetch_sub(&s->n_sleeping, 1);
    pthread_mutex_unlock(&s->mutex);
}

static void *member_main(void *argument) {
    Member *member = argument;
    Team *team = member->team;
    unsigned seen = 0;
    for (;;) {
        signal_await(&team->start, seen++, START_LOOKS);
        if (team->work == NULL) return NULL;
        team->work(team->argument, member->number);
        team_wait(team);
    }
}

Team *team_open(int n_threads) {
    Team *team = aligned_alloc(64, (sizeof(Team) + 63) / 64 * 64);
    Member *members = calloc((size_t)n_threads, sizeof(Member));
    if (team == NULL || members == NULL || signal_open(&team->start) || signal_open(&team->meeting)) {
        free(team);
        free(members);
        return NULL;
    }
    atomic_init(&team->n_arrived, 0);
    team->n_threads = n_threads;
    team->work = NULL;
    team->members = members;
    for (team->n_started = 1; team->n_started < n_threads; team->n_started++) {
        Member *member = &members[team->n_started];
        *member = (Member){.team = team, .number = team->n_started};
        if (pthread_create(&member->thread, NULL, member_main, member)) {
            team_close(team);
            return NULL;
        }
    }
    return team;
}

void team_close(Team *team) {
    team->work = NULL;
    signal_raise(&team->start);
    for (int i = 1; i < team->n_started; i++) pthread_join(team->members[i].thread, NULL);
    Signal *signals[] = {&team->start, &team->meeting};
    for (int i = 0; i < 2; i++) {
        pthread_mutex_destroy(&signals[i]->mutex);
        pthread_cond_destroy(&signals[i]->changed);
    }
    free(team->members);
    free(team);
}

int team_size(const Team *team) { return team->n_threads; }

void team_run(Team *team, Work work, void *argument) {
    team->work = work;
    team->argument = argument;
    if (team->n_threads > 1) signal_raise(&team->start);
    work(argument, 0);
    team_wait(team);
}

void team_wait(Team *team) {
    if (team->n_threads == 1) return;
    unsigned old = atomic_load_explicit(&team->meeting.value, memory_order_relaxed);
    if (atomic_fetch_add(&team->n_arrived, 1) + 1 == team->n_threads) {
        atomic_store(&team->n_arrived, 0);
        signal_raise(&team->meeting);
    } else {
        signal_await(&team->meeting, old, MEETING_LOOKS);
    }
}

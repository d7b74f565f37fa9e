/* A team of threads that work on one function together. The caller is its first member. */
#ifndef LAMOID_TEAM_H
#define LAMOID_TEAM_H

typedef struct Team Team;
typedef void (*Work)(void *argument, int thread);

Team *team_open(int n_threads); /* NULL where threads or memory are missing */
void team_close(Team *team);
int team_size(const Team *team);

void team_run(Team *team, Work work, void *argument); /* every member calls work(argument, its number) */
void team_wait(Team *team);                           /* inside of work: until all members are here */

#endif

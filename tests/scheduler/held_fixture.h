/* held_fixture: a stream that decodes, and prompts that enter beside it in a pass that is held
 * between its parts. Nothing here measures time: an order of events is arranged, or looked at
 * afterwards. */
#ifndef TESTS_HELD_FIXTURE_H
#define TESTS_HELD_FIXTURE_H

#include "scheduler_fixture.h"

enum {
    HELD_LONG = 3000, /* tokens of a prompt that takes many passes */
    HELD_SHORT = 30,  /* and of one that needs none */
    HELD_SLOTS = 4,
    HELD_REPLY = 5, /* tokens of a reply */
    HELD_TEXT_MAX = 1 << 20,
    HELD_STREAM = 80000, /* tokens of a stream that does not end within a test */
};

/* A scheduler with a stream that decodes. */
typedef struct World {
    Fixture fixture;
    Job *stream;
} World;

/* A prompt of a number, and what is to become of it. */
typedef struct Entry {
    int32_t prompt[HELD_LONG];
    size_t n_prompt;
    bool echoes; /* the log-probabilities of the prompt are wanted */
    Job *job;
    atomic_size_t *clock, first_notice; /* when its owner was first told something */
} Entry;

void world_open(World *w, size_t stream_tokens);
void world_close(World *w);
/* Until a counter of the engine has come to value. */
void wait_for(atomic_size_t *counter, size_t value);

void entry_init(Entry *entry, uint32_t number, size_t n_prompt);
/* What it asks for; it must stay where it is. */
void entry_request(Entry *entry, JobRequest *request);
void entry_enter(Fixture *fixture, Entry *entry);
/* init and enter. */
void enter(World *w, Entry *entry, uint32_t number, size_t n_prompt);
/* Its reply is what it would be alone. */
void check_reply(World *w, Entry *entry);
/* It ends with this error. */
void check_error(Entry *entry, const char *message);

/* Enters, and stops the engine in the first part of a held pass that has the entry's prompt. */
void stop_in_first_part(World *w, Entry *entry);
/* Both enter, and the engine stops in the first part of a pass that they share: the second one's
 * row, then the first one's, of which a pass has been computed alone. */
void stop_in_shared_pass(World *w, Entry *first, Entry *second);
void go_on(World *w);
/* With the engine stopped in a part: far beyond what a step may take, so that it has no other. */
void outlast_step(void);

#endif

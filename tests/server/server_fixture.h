/* server_fixture: a server on a free port of 127.0.0.1 before a fake engine, and readers of what it
 * answers. Whatever is not as expected ends the test. */
#ifndef TESTS_SERVER_FIXTURE_H
#define TESTS_SERVER_FIXTURE_H

#include "fake_engine.h"
#include "http_client.h"
#include "json.h"
#include "server.h"

enum { SLOTS = 3, CONTEXT = 9000 };

typedef struct Fixture {
    FakeEngine fake;
    Scheduler *scheduler;
    Server *server;
    Tokenizer *tokenizer; /* these two are shared by all tests of a program */
    ChatTemplate *chat;
    uint16_t port;
    bool is_loading;   /* set before fixture_init_with: the server gets no model yet */
    ServerModel model; /* what it gets */
} Fixture;

/* cmocka's setup and teardown of the group. */
int server_tests_setup(void **state);
int server_tests_teardown(void **state);

void fixture_init(Fixture *fixture);
/* With keys, origins and the like; the model's names are the fixture's. The fixture is zeroed but
 * for is_loading. */
void fixture_init_with(Fixture *fixture, const ServerOptions *options);
/* Stops the server and checks that the engine has lost nothing. */
void fixture_reset(Fixture *fixture);

/* ---- JSON ---- */

/* Into an arena that it initialises. */
const JsonValue *parse_json(const Buffer *text, Arena *arena);
/* The value at a path such as "choices.0.message.content"; NULL when there is none. */
const JsonValue *value_at(const JsonValue *value, const char *path);
Slice text_at(const JsonValue *value, const char *path);
int64_t number_at(const JsonValue *value, const char *path);
void assert_slice(Slice found, const char *expected);
/* An error of all four keys, and nothing else. param NULL: null. */
void assert_error(const Reply *reply, int status, const char *code, const char *param);

/* ---- Chat ---- */

#define CHAT_HEAD "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
#define HELLO "\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]"
/* What the template makes of one message of the user. */
#define PROMPT(text) "<|im_start|>user\n" text "<|im_end|>\n<|im_start|>assistant\n"

/* Sends head (without Content-Length) and body. */
void send_post(Client *client, const char *head, const char *body);
void post_chat(Fixture *fixture, const char *body, Reply *reply);
/* The engine's reply to a prompt text. */
void expected_reply(const char *prompt, bool never_ends, size_t max, Buffer *out, bool *ended,
                    size_t *n_prompt);
/* A chat.completion with all its fields and the engine's reply to the prompt. */
void assert_completion(const Reply *reply, const char *prompt, size_t max, bool never_ends);

/* ---- Streams ---- */

/* What the events of one stream say; text is the caller's to reset. */
typedef struct Stream {
    Buffer text;
    size_t deltas, comments;
    bool began, ended, done, has_usage, has_null_usage;
    char finish[32], code[64], id[64];
    int64_t completion_tokens;
} Stream;

/* Reads a whole text/event-stream and checks each event and their order. */
void read_events(Stream *stream, Slice body);

#endif

/* reply: one generation request on its way to its answer, whatever the dialect.
 *
 * A reply has prompts (one for a chat, up to SERVER_PROMPTS_MAX for completions), each of them a
 * job of the scheduler with one or more choices. It collects what the choices produce and has the
 * dialect write it: as one object at the end, or as server-sent events while it comes. A dialect
 * appends to buffers and knows no jobs, threads or sockets. */
#ifndef SERVER_REPLY_H
#define SERVER_REPLY_H

#include "http.h"

typedef struct Reply Reply;

/* A call of a tool. */
typedef struct ReplyToolCall {
    char id[32]; /* "call_..." */
    Buffer name;
    Buffer arguments; /* whole replies only */
} ReplyToolCall;

/* reply_logprobs: the entries of a reply's text, of which only those of its content are told. */
typedef struct ContentLogprobs {
    LogprobList pending; /* [done ..] not decided yet */
    size_t done;
    size_t at;          /* where the front entry's text begins */
    size_t first, last; /* what of it is content: [first, last) of the reply's text */
    bool was_content;   /* the entry before it was */
} ContentLogprobs;

void content_logprobs_init(ContentLogprobs *logprobs);
void content_logprobs_reset(ContentLogprobs *logprobs);
/* [start, end) of the reply's text is content: the entries that end there go to out. A token that
 * is content in part keeps the bytes of that part. With SIZE_MAX for both, all entries are
 * decided. */
void content_logprobs_take(ContentLogprobs *logprobs, size_t start, size_t end, LogprobList *out);

typedef struct ReplyChoice {
    size_t index;             /* in the response */
    size_t prompt;            /* of reply->prompts */
    size_t number;            /* among the choices of its prompt */
    Buffer text;              /* whole: all so far; streams: new since the last event */
    LogprobList logprobs;     /* the same */
    size_t bytes, characters; /* streams: of text, told before this one */
    size_t entry_characters;  /* of those, up to the end of the last entry that was told */
    JobStatus status;
    bool ended; /* and told so */

    /* Of replies with parts. */
    ChatReply parts;
    Buffer raw; /* scratch: new text of all parts */
    ContentLogprobs entries;
    Buffer reasoning;     /* whole replies only */
    ReplyToolCall *calls; /* [n_calls] all of parts.n_calls, unless memory failed */
    size_t n_calls, calls_capacity;
} ReplyChoice;

typedef struct ReplyPrompt {
    Job *job;
    Slice echo;           /* text that the choices begin with, in the request's arena; or empty */
    LogprobList logprobs; /* of its tokens, if wanted */
    bool has_logprobs;
} ReplyPrompt;

/* How a dialect words it. Streams: begin, then delta and choice_end as the choices go, then end. */
typedef struct ReplyDialect {
    void (*begin)(const Reply *reply, Buffer *out);
    /* The choice has new text, or (only for the last time) log-probabilities without text. */
    void (*delta)(const Reply *reply, const ReplyChoice *choice, Buffer *out);
    /* Replies with parts: new reasoning; a call begins; more of its arguments. */
    void (*reasoning)(const Reply *reply, const ReplyChoice *choice, Slice text, Buffer *out);
    void (*call)(const Reply *reply, const ReplyChoice *choice, size_t call, Buffer *out);
    void (*arguments)(const Reply *reply, const ReplyChoice *choice, size_t call, Slice text,
                      Buffer *out);
    /* What the choice's lists still hold goes with it. */
    void (*choice_end)(const Reply *reply, const ReplyChoice *choice, Buffer *out);
    void (*end)(const Reply *reply, Buffer *out);
    void (*error)(const HttpError *error, Buffer *out); /* ends the stream */
    void (*keep_alive)(Buffer *out);
    void (*whole)(const Reply *reply, Buffer *out); /* not streamed: the response */
} ReplyDialect;

struct Reply {
    const ReplyDialect *dialect;
    const Tokenizer *tokenizer;
    int64_t id;      /* of "chatcmpl-..." and the like */
    int64_t created; /* unix seconds */
    Slice model;
    const char *fingerprint;
    bool stream, include_usage, logprobs, echo;
    bool has_parts;    /* the text has marks */
    uint64_t call_key; /* makes the ids of calls */
    bool began;
    ReplyPrompt *prompts; /* [n_prompts] */
    size_t n_prompts;
    ReplyChoice *choices; /* [n_choices], choice i of prompt p at p * n + i */
    size_t n_choices;
};

/* What a dialect asks for. Everything is copied or lives in the request's arena. */
typedef struct ReplyCall {
    const ReplyDialect *dialect;
    const TokenList *prompts; /* [n_prompts] */
    const Slice *echoes;      /* [n_prompts] texts of the prompts to begin with, or NULL */
    size_t n_prompts;
    size_t n; /* choices a prompt */
    GenerationOptions generation;
    bool stream, include_usage;
    const char *prompt_param; /* the field to blame for a prompt that does not fit */
} ReplyCall;

/* "stop", "length", "tool_calls"; NULL while it runs. */
const char *reply_finish_name(const ReplyChoice *choice);
/* Submits the jobs and makes the reply the request's task; all of them or, on failure, none. */
bool reply_start(HttpRequest *request, const ReplyCall *call, HttpError *error) WARN_UNUSED;

#endif

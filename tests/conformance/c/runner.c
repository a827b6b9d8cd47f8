/* The C runner: blocking calls over the installed library. ../README.md has the actions, the variables and the output.
 * A case is a flat JSON object, so the parser below knows nothing else. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <valkyrie.h>

#define MAX_FIELDS 32
#define MAX_ENTRIES 16

typedef struct {
    char *key, *value;
} field;

typedef struct {
    field fields[MAX_FIELDS];
    int len;
    char token[64];
} test_case;

typedef struct {
    uint8_t *data;
    size_t len;
} owned;

/* A reply, or an error in the same shape. */
typedef struct {
    valkyrie_code code;
    valkyrie_error *error;
    valkyrie_message *response;
    owned message;
    const valkyrie_metadata *metadata, *trailers;
} got;

static const char *endpoint, *absent;
static valkyrie_client_options options = VALKYRIE_CLIENT_OPTIONS_INIT;
static valkyrie_client *shared;
static char detail[1 << 20];
static int failed;

static void fail(const char *format, ...) {
    size_t used = strlen(detail);
    va_list arguments;
    failed = 1;
    if (used + 4 >= sizeof detail) return;
    if (used) used += (size_t)snprintf(detail + used, sizeof detail - used, "; ");
    va_start(arguments, format);
    vsnprintf(detail + used, sizeof detail - used, format, arguments);
    va_end(arguments);
}

/* ---- a flat JSON object ---- */

static void put_utf8(char **out, unsigned code) {
    unsigned char *p = (unsigned char *)*out;
    if (code < 0x80) *p++ = (unsigned char)code;
    else if (code < 0x800) *p++ = (unsigned char)(0xc0 | code >> 6), *p++ = (unsigned char)(0x80 | (code & 63));
    else if (code < 0x10000) {
        *p++ = (unsigned char)(0xe0 | code >> 12);
        *p++ = (unsigned char)(0x80 | (code >> 6 & 63));
        *p++ = (unsigned char)(0x80 | (code & 63));
    } else {
        *p++ = (unsigned char)(0xf0 | code >> 18);
        *p++ = (unsigned char)(0x80 | (code >> 12 & 63));
        *p++ = (unsigned char)(0x80 | (code >> 6 & 63));
        *p++ = (unsigned char)(0x80 | (code & 63));
    }
    *out = (char *)p;
}

static unsigned hex4(const char *at) {
    char digits[5] = {at[0], at[1], at[2], at[3], 0};
    return (unsigned)strtoul(digits, NULL, 16);
}

/* A string in place: decoded text never is longer than its source. */
static char *parse_string(char **at) {
    char *in = *at + 1, *start = in, *out = in;
    while (*in != '"') {
        if (*in != '\\') {
            *out++ = *in++;
            continue;
        }
        in++;
        if (*in == 'u') {
            unsigned code = hex4(in + 1);
            in += 5;
            if (code >= 0xd800 && code < 0xdc00 && in[0] == '\\' && in[1] == 'u') {
                code = 0x10000 + ((code - 0xd800) << 10) + (hex4(in + 2) - 0xdc00);
                in += 6;
            }
            put_utf8(&out, code);
        } else {
            *out++ = *in == 'n' ? '\n' : *in == 'r' ? '\r' : *in == 't' ? '\t' : *in;
            in++;
        }
    }
    *at = in + 1;
    *out = 0;
    return start;
}

static int parse_case(char **at, test_case *one) {
    char *p = strchr(*at, '{');
    if (!p) return 0;
    one->len = 0;
    for (p++; *p != '}';) {
        if (*p != '"') {
            p++;
            continue;
        }
        if (one->len == MAX_FIELDS) abort();
        field *next = &one->fields[one->len++];
        next->key = parse_string(&p);
        p += strspn(p, " :");
        if (*p == '"') next->value = parse_string(&p);
        else {
            size_t len = strcspn(p, ",} \n");
            next->value = strndup(p, len);
            p += len;
        }
    }
    *at = p + 1;
    return 1;
}

static const char *raw(const test_case *one, const char *key) {
    for (int i = 0; i < one->len; i++)
        if (!strcmp(one->fields[i].key, key)) return one->fields[i].value;
    return NULL;
}

static size_t number(const test_case *one, const char *key) {
    const char *value = raw(one, key);
    return value ? (size_t)strtoull(value, NULL, 10) : 0;
}

/* A field with its placeholders filled in; the caller frees it. */
static char *text(const test_case *one, const char *key) {
    const char *value = raw(one, key);
    if (!value) return NULL;
    char *out = (char *)malloc(strlen(value) * 8 + 256), *end = out;
    while (*value) {
        const char *with = !strncmp(value, "$TOKEN", 6) ? one->token : !strncmp(value, "$ABSENT", 7) ? absent : NULL;
        if (!with) {
            *end++ = *value++;
            continue;
        }
        value += with == absent ? 7 : 6;
        strcpy(end, with);
        end += strlen(with);
    }
    *end = 0;
    return out;
}

/* ---- messages and metadata ---- */

static owned from_hex(const char *hex) {
    owned out = {(uint8_t *)malloc(strlen(hex) / 2 + 1), strlen(hex) / 2};
    for (size_t i = 0; i < out.len; i++) {
        char digits[3] = {hex[2 * i], hex[2 * i + 1], 0};
        out.data[i] = (uint8_t)strtoul(digits, NULL, 16);
    }
    return out;
}

static owned message_of(const test_case *one) {
    char *words = text(one, "text");
    owned out = {(uint8_t *)words, words ? strlen(words) : 0};
    if (words) return out;
    if (raw(one, "hex")) return from_hex(raw(one, "hex"));
    out.len = number(one, "size");
    out.data = (uint8_t *)malloc(out.len + 1);
    for (size_t i = 0; i < out.len; i++) out.data[i] = (uint8_t)(i % 251);
    return out;
}

/* The caller frees it. */
static char *method_of(const test_case *one) {
    if (!raw(one, "method_hex")) return text(one, "method");
    owned bytes = from_hex(raw(one, "method_hex"));
    bytes.data[bytes.len] = 0;
    return (char *)bytes.data;
}

static owned pattern(const test_case *one, size_t i) {
    owned out = {(uint8_t *)malloc(number(one, "size") + 1), number(one, "size")};
    memset(out.data, (int)(i % 251), out.len);
    return out;
}

static valkyrie_bytes lend(owned bytes) {
    valkyrie_bytes out = {bytes.data, bytes.len};
    return out;
}

static valkyrie_bytes words(const char *string) {
    valkyrie_bytes out = {(const uint8_t *)string, strlen(string)};
    return out;
}

typedef struct {
    valkyrie_call_options options;
    valkyrie_metadata_entry entries[MAX_ENTRIES];
    char *source, *key;
    owned values[MAX_ENTRIES];
} call_setup;

/* Splits key=value&key=value; values of -bin keys are hexadecimal. */
static size_t split(char *source, valkyrie_metadata_entry *entries, owned *values) {
    size_t count = 0;
    for (char *next, *at = source; at && *at; at = next) {
        next = strchr(at, '&');
        if (next) *next++ = 0;
        char *value = strchr(at, '=');
        *value++ = 0;
        size_t len = strlen(at);
        int binary = len > 4 && !strcmp(at + len - 4, "-bin");
        values[count].data = NULL;
        if (binary) values[count] = from_hex(value);
        entries[count].key = at;
        entries[count].value = binary ? lend(values[count]) : words(value);
        count++;
    }
    return count;
}

static void set_up(const test_case *one, call_setup *setup) {
    static char large[1 << 20];
    valkyrie_call_options options = VALKYRIE_CALL_OPTIONS_INIT;
    memset(setup, 0, sizeof *setup);
    setup->options = options;
    setup->options.timeout_ms = number(one, "timeout_ms");
    setup->options.idempotent = (uint32_t)number(one, "idempotent");
    setup->options.draw_idempotency_key = (uint32_t)number(one, "draw_idempotency_key");
    setup->key = text(one, "idempotency_key");
    if (setup->key) setup->options.idempotency_key = words(setup->key);
    setup->source = text(one, "metadata");
    size_t count = split(setup->source, setup->entries, setup->values);
    if (raw(one, "metadata_size")) {
        memset(large, 'x', sizeof large);
        setup->entries[count].key = "x-large";
        setup->entries[count].value.data = (const uint8_t *)large;
        setup->entries[count++].value.len = number(one, "metadata_size");
    }
    setup->options.metadata = setup->entries;
    setup->options.metadata_len = count;
}

static void tear_down(call_setup *setup) {
    for (int i = 0; i < MAX_ENTRIES; i++) free(setup->values[i].data);
    free(setup->source);
    free(setup->key);
}

/* ---- outcomes ---- */

static got settle(valkyrie_code code, valkyrie_message *response, valkyrie_error *error) {
    got out = {code, error, response, {NULL, 0}, NULL, NULL};
    if (response) {
        valkyrie_bytes bytes = valkyrie_message_bytes(response);
        out.message.data = (uint8_t *)bytes.data;
        out.message.len = bytes.len;
        out.metadata = valkyrie_message_metadata(response);
        out.trailers = valkyrie_message_trailers(response);
    } else if (error) {
        out.metadata = valkyrie_error_metadata(error);
        out.trailers = valkyrie_error_trailers(error);
    }
    return out;
}

static void drop(got *one) {
    valkyrie_message_free(one->response);
    valkyrie_error_free(one->error);
}

static got call_with(valkyrie_client *client, const test_case *one, owned message) {
    call_setup setup;
    valkyrie_message *response = NULL;
    valkyrie_error *error = NULL;
    char *method = method_of(one);
    set_up(one, &setup);
    valkyrie_code code =
        valkyrie_client_call(client, method ? method : "/echo", lend(message), &setup.options, &response, &error);
    tear_down(&setup);
    free(message.data);
    free(method);
    return settle(code, response, error);
}

static got call(valkyrie_client *client, const test_case *one) {
    return call_with(client, one, message_of(one));
}

static got echo(valkyrie_client *client) {
    valkyrie_message *response = NULL;
    valkyrie_error *error = NULL;
    valkyrie_code code = valkyrie_client_request(client, words("x"), &response, &error);
    return settle(code, response, error);
}

/* When a handler was dropped last, in microseconds since 1970. */
static uint64_t hang_until(const test_case *one, const char *until) {
    valkyrie_call_options options = VALKYRIE_CALL_OPTIONS_INIT;
    valkyrie_metadata_entry entry = {"until", words(until)};
    valkyrie_message *response = NULL;
    options.timeout_ms = 30000;
    options.metadata = &entry;
    options.metadata_len = 1;
    valkyrie_code code =
        valkyrie_client_call(shared, "/test/hang_stats", words(one->token), &options, &response, NULL);
    if (code) fail("waiting until the handler has %s: %s", until, valkyrie_code_name(code));
    valkyrie_bytes bytes = valkyrie_message_bytes(response);
    char stats[256];
    snprintf(stats, sizeof stats, "%.*s", (int)bytes.len, (const char *)bytes.data);
    valkyrie_message_free(response);
    const char *dropped = strstr(stats, "\"dropped_us\":");
    return dropped ? strtoull(dropped + 13, NULL, 10) : 0;
}

static int same(valkyrie_bytes bytes, const char *string) {
    return bytes.len == strlen(string) && !memcmp(bytes.data, string, bytes.len);
}

static void check_entries(const test_case *one, const char *key, const valkyrie_metadata *found) {
    valkyrie_metadata_entry entries[MAX_ENTRIES];
    owned values[MAX_ENTRIES];
    char *source = text(one, key);
    if (!source) return;
    size_t count = split(source, entries, values);
    if (count != valkyrie_metadata_len(found))
        fail("%s: expected %zu entries, got %zu", key, count, valkyrie_metadata_len(found));
    for (size_t i = 0; i < count; i++) {
        valkyrie_bytes name = {NULL, 0}, value = {NULL, 0}, expected = entries[i].value;
        if (valkyrie_metadata_at(found, i, &name, &value) &&
            (!same(name, entries[i].key) || value.len != expected.len || memcmp(value.data, expected.data, value.len)))
            fail("%s: entry %zu is %.*s, not %s", key, i, (int)name.len, (const char *)name.data, entries[i].key);
        free(values[i].data);
    }
    free(source);
}

static int is_replayed(const got *one) {
    valkyrie_bytes key, value;
    for (size_t i = 0; valkyrie_metadata_at(one->metadata, i, &key, &value); i++)
        if (same(key, "valkyrie-replayed")) return same(value, "true");
    return 0;
}

static void check(const test_case *one, got *result) {
    const char *code = raw(one, "code"), *reason = raw(one, "reason");
    valkyrie_bytes found = valkyrie_error_reason(result->error), type = {NULL, 0}, value = {NULL, 0};
    char *status = text(one, "status_message"), *reply = text(one, "reply_text");
    uint64_t pushback = 0;
    if (code && strcmp(code, valkyrie_code_name(result->code)))
        fail("code: expected %s, got %s (%s)", code, valkyrie_code_name(result->code),
             valkyrie_error_message(result->error));
    if (raw(one, "code_number") && number(one, "code_number") != result->code)
        fail("code number: expected %zu, got %u", number(one, "code_number"), result->code);
    if (reason && !same(found, reason))
        fail("reason: expected %s, got %.*s", reason, (int)found.len, (const char *)found.data);
    if (status && strcmp(status, valkyrie_error_message(result->error)))
        fail("status message: expected %s, got %s", status, valkyrie_error_message(result->error));
    valkyrie_error_detail(result->error, 0, &type, &value);
    if (raw(one, "detail_type") && !same(type, raw(one, "detail_type"))) fail("detail type");
    if (raw(one, "detail_text") && !same(value, raw(one, "detail_text"))) fail("detail");
    if (raw(one, "pushback_ms") &&
        (!valkyrie_error_pushback_ms(result->error, &pushback) || pushback != number(one, "pushback_ms")))
        fail("pushback: got %llu", (unsigned long long)pushback);
    if (reply && !same(lend(result->message), reply))
        fail("reply: expected %s, got %.*s", reply, (int)(result->message.len < 99 ? result->message.len : 99),
             (const char *)result->message.data);
    if (raw(one, "reply_size") && number(one, "reply_size") != result->message.len)
        fail("reply size: expected %zu, got %zu", number(one, "reply_size"), result->message.len);
    if (raw(one, "reply_max")) {
        char digits[32] = {0};
        memcpy(digits, result->message.data, result->message.len < 31 ? result->message.len : 31);
        size_t reply_number = (size_t)strtoull(digits, NULL, 10);
        if (reply_number < 1 || reply_number > number(one, "reply_max")) fail("reply: %zu", reply_number);
    }
    if (number(one, "reply_echo")) {
        owned sent = message_of(one);
        if (sent.len != result->message.len || (sent.len && memcmp(sent.data, result->message.data, sent.len)))
            fail("the reply of %zu bytes is not the message", result->message.len);
        free(sent.data);
    }
    check_entries(one, "expect_metadata", result->metadata);
    check_entries(one, "expect_trailers", result->trailers);
    free(status);
    free(reply);
    if (!failed && number(one, "then_dropped")) hang_until(one, "dropped");
}

static void check_and_drop(const test_case *one, got result) {
    check(one, &result);
    drop(&result);
}

/* ---- streams ---- */

static valkyrie_call *open_stream(valkyrie_client *client, const test_case *one) {
    call_setup setup;
    valkyrie_call *stream = NULL;
    char *method = text(one, "method");
    set_up(one, &setup);
    valkyrie_code code = valkyrie_client_open(client, method, &setup.options, &stream, NULL);
    if (code) fail("open: %s", valkyrie_code_name(code));
    tear_down(&setup);
    free(method);
    return stream;
}

static valkyrie_call *server_stream(valkyrie_client *client, const test_case *one) {
    valkyrie_call *stream = open_stream(client, one);
    owned message = message_of(one);
    if (raw(one, "size") && !raw(one, "text")) message.len = 0;
    /* Receiving says how it ended, whatever becomes of these. */
    valkyrie_call_send(stream, lend(message), NULL);
    valkyrie_call_half_close(stream, NULL);
    free(message.data);
    return stream;
}

/* Receives to the end; patterns: every message must be the pattern of its number. Keeps the last message. */
static got receive_all(const test_case *one, valkyrie_call *stream, size_t *count, int patterns, valkyrie_message **last) {
    for (;;) {
        valkyrie_message *message = NULL;
        valkyrie_error *error = NULL;
        valkyrie_code code = valkyrie_call_recv(stream, &message, &error);
        if (code || !message) {
            got out = settle(code, NULL, error);
            if (!code) {
                out.metadata = valkyrie_call_metadata(stream);
                out.trailers = valkyrie_call_trailers(stream);
            }
            return out;
        }
        if (patterns) {
            owned expected = pattern(one, *count);
            valkyrie_bytes bytes = valkyrie_message_bytes(message);
            if (bytes.len != expected.len || (bytes.len && memcmp(bytes.data, expected.data, bytes.len)))
                fail("message %zu is not the pattern", *count);
            free(expected.data);
        }
        ++*count;
        if (last) {
            valkyrie_message_free(*last);
            *last = message;
        } else valkyrie_message_free(message);
    }
}

static int receive_one(const test_case *one, valkyrie_call *stream, size_t i) {
    valkyrie_message *message = NULL;
    owned expected = pattern(one, i);
    valkyrie_code code = valkyrie_call_recv(stream, &message, NULL);
    valkyrie_bytes bytes = valkyrie_message_bytes(message);
    int right = !code && message && bytes.len == expected.len && !memcmp(bytes.data, expected.data, bytes.len);
    if (!right) fail("message %zu is not the one sent", i);
    valkyrie_message_free(message);
    free(expected.data);
    return right;
}

static int send_one(const test_case *one, valkyrie_call *stream, size_t i) {
    owned message = pattern(one, i);
    valkyrie_code code = valkyrie_call_send(stream, lend(message), NULL);
    free(message.data);
    return code == 0;
}

/* ---- what runs beside the main thread ---- */

typedef struct {
    valkyrie_client *client;
    const test_case *one;
    valkyrie_call *stream;
    valkyrie_queue *queue;
    uint64_t operation;
    got result;
    int done;
} worker;

static void on_complete(const valkyrie_completion *completion, void *user_data) {
    worker *beside = (worker *)user_data;
    beside->result = settle(completion->code, completion->message, completion->error);
    beside->done++;
}

static valkyrie_code start_call(worker *beside, const char *method, owned message, const call_setup *setup) {
    valkyrie_operation call = VALKYRIE_OPERATION_INIT(VALKYRIE_OPERATION_CALL);
    call.client = beside->client;
    call.target = method;
    call.message = lend(message);
    call.call_options = &setup->options;
    return valkyrie_operation_start(beside->queue, &call, &beside->operation, NULL, on_complete, beside);
}

static void start(worker *beside) {
    call_setup setup;
    owned message = message_of(beside->one);
    char *method = text(beside->one, "method");
    set_up(beside->one, &setup);
    if (start_call(beside, method, message, &setup)) fail("the call was refused");
    tear_down(&setup);
    free(message.data);
    free(method);
}

static void finish(worker *beside) {
    while (!failed && !beside->done)
        if (!valkyrie_queue_dispatch(beside->queue, 60000)) fail("the call does not end");
}

static void *receive_in_thread(void *argument) {
    worker *beside = (worker *)argument;
    size_t count = 0;
    beside->result = receive_all(beside->one, beside->stream, &count, 0, NULL);
    return NULL;
}

static int by_size(const void *a, const void *b) {
    uint64_t one = *(const uint64_t *)a, other = *(const uint64_t *)b;
    return (one > other) - (one < other);
}

/* ---- scripts ---- */

static void say(const got *one) {
    size_t used = strlen(detail);
    valkyrie_bytes what = one->error ? valkyrie_error_reason(one->error) : lend(one->message);
    snprintf(detail + used, sizeof detail - used, "%s %.*s\n", valkyrie_code_name(one->code), (int)what.len,
             (const char *)what.data);
    valkyrie_bytes timeline = valkyrie_error_timeline(one->error);
    for (size_t at = 0, end; at < timeline.len; at = end + 1) {
        for (end = at; end < timeline.len && timeline.data[end] != '\n';) end++;
        used = strlen(detail);
        snprintf(detail + used, sizeof detail - used, "  %.*s\n", (int)(end - at), (const char *)timeline.data + at);
    }
}

/* One step: [COUNTx|COUNT&] METHOD [idempotent] [timeout=MS] */
static void run_step(valkyrie_client *client, char *step) {
    char *rest, *word = strtok_r(step, " ", &rest);
    size_t count = 1, done = 0;
    char kind = word[strlen(word) - 1];
    call_setup setup;
    valkyrie_call_options options = VALKYRIE_CALL_OPTIONS_INIT;
    worker all[64];
    owned nothing = {NULL, 0};
    if (kind == 'x' || kind == '&') {
        count = strtoul(word, NULL, 10);
        word = strtok_r(NULL, " ", &rest);
    }
    const char *method = word;
    while ((word = strtok_r(NULL, " ", &rest))) {
        if (!strcmp(word, "idempotent")) options.idempotent = 1;
        if (!strncmp(word, "timeout=", 8)) options.timeout_ms = strtoull(word + 8, NULL, 10);
    }
    memset(&setup, 0, sizeof setup);
    setup.options = options;
    if (kind != '&') {
        for (size_t i = 0; i < count; i++) {
            valkyrie_message *response = NULL;
            valkyrie_error *error = NULL;
            valkyrie_code code = valkyrie_client_call(client, method, lend(nothing), &options, &response, &error);
            got result = settle(code, response, error);
            if (strncmp(method, "/script/", 8)) say(&result);
            drop(&result);
        }
        return;
    }
    valkyrie_queue *queue = NULL;
    char together[64];
    snprintf(together, sizeof together, "/script/together/%zu", count);
    valkyrie_message *begun = NULL;
    if (valkyrie_client_call(client, together, lend(nothing), NULL, &begun, NULL)) fail("%s is refused", together);
    valkyrie_message_free(begun);
    valkyrie_queue_new(&queue, NULL);
    memset(all, 0, sizeof all);
    for (size_t i = 0; i < count && i < 64; i++) {
        all[i].client = client;
        all[i].queue = queue;
        if (start_call(&all[i], method, nothing, &setup)) fail("call %zu was refused", i);
    }
    while (done < count && !failed) {
        size_t more = valkyrie_queue_dispatch(queue, 60000);
        if (!more) fail("%zu of %zu calls do not end", count - done, count);
        done += more;
    }
    for (size_t i = 0; i < count && i < 64; i++) {
        say(&all[i].result);
        drop(&all[i].result);
    }
    valkyrie_queue_free(queue);
}

/* The outcomes of its calls, and the core's trace of them. */
static void run_script(const test_case *one) {
    valkyrie_client_options said = VALKYRIE_CLIENT_OPTIONS_INIT;
    valkyrie_client *client = NULL;
    valkyrie_message *response = NULL;
    char *steps = strdup(raw(one, "steps")), *rest;
    said.service_config = raw(one, "service_config");
    if (valkyrie_client_connect(raw(one, "endpoint"), &said, &client, NULL)) {
        fail("no client");
    } else {
        for (char *step = strtok_r(steps, ";", &rest); step && !failed; step = strtok_r(NULL, ";", &rest))
            run_step(client, step);
        if (valkyrie_client_call(client, "/script/trace", words(""), NULL, &response, NULL)) fail("no trace");
        valkyrie_bytes trace = valkyrie_message_bytes(response);
        size_t used = strlen(detail);
        snprintf(detail + used, sizeof detail - used, "%.*s", (int)trace.len, (const char *)trace.data);
        valkyrie_message_free(response);
        valkyrie_client_free(client);
    }
    free(steps);
}

/* ---- a server that is killed ---- */

/* One of several servers is killed among many calls, 50 at a time, that may be executed twice. */
static void run_failover(const test_case *one) {
    size_t wanted = number(one, "count"), wrong = 0, calls;
    valkyrie_client *client = NULL;
    valkyrie_queue *queue = NULL;
    call_setup setup, once;
    worker all[51];
    char digits[51][32], *method;
    set_up(one, &once);
    set_up(one, &setup);
    setup.options.idempotent = 1;
    valkyrie_queue_new(&queue, NULL);
    if (valkyrie_client_connect(raw(one, "endpoint"), &options, &client, NULL)) fail("cannot connect");
    for (size_t first = 0; first < wanted && !failed; first += calls - (calls > 50)) {
        memset(all, 0, sizeof all);
        calls = first == wanted / 4 / 50 * 50 ? 51 : 50;
        for (size_t i = 0; i < calls; i++) {
            owned message = {(uint8_t *)digits[i], (size_t)snprintf(digits[i], sizeof digits[i], "%zu", first + i)};
            all[i].client = client;
            all[i].queue = queue;
            method = i == 50 ? "/test/die" : "/echo";
            if (start_call(&all[i], method, message, i == 50 ? &once : &setup)) fail("call %zu was refused", first + i);
        }
        for (size_t done = 0, more; done < calls && !failed; done += more) {
            more = valkyrie_queue_dispatch(queue, 60000);
            if (!more) fail("%zu of %zu calls do not end", calls - done, calls);
        }
        for (size_t i = 0; i < calls; i++) {
            valkyrie_error *error = all[i].result.error;
            if (i < 50 && !same(lend(all[i].result.message), digits[i]) && !wrong++)
                fail("call %s: %s %.*s", digits[i], error ? valkyrie_error_message(error) : "another's",
                     (int)valkyrie_error_timeline(error).len, (const char *)valkyrie_error_timeline(error).data);
            drop(&all[i].result);
        }
    }
    if (wrong) fail("%zu of %zu failed", wrong, wanted);
    valkyrie_client_free(client);
    valkyrie_queue_free(queue);
    tear_down(&setup);
    tear_down(&once);
}

/* ---- private servers ---- */

/* Where a fresh server is; kind is "", "credentials" or "access POLICY". */
static void open_server(const char *kind, char *where, size_t size) {
    char scheme[64] = {0};
    valkyrie_message *response = NULL;
    snprintf(scheme, sizeof scheme, "%.*s%s%s", (int)strcspn(endpoint, ":"), endpoint, *kind ? " " : "", kind);
    if (valkyrie_client_call(shared, "/test/private", words(scheme), NULL, &response, NULL)) fail("no private server");
    valkyrie_bytes bytes = valkyrie_message_bytes(response);
    memset(where, 0, size);
    memcpy(where, bytes.data, bytes.len < size ? bytes.len : 0);
    valkyrie_message_free(response);
}

static valkyrie_client *private_server(const test_case *one) {
    char where[256];
    valkyrie_client *client = NULL;
    valkyrie_client_options said = options;
    said.service_config = raw(one, "service_config");
    open_server("", where, sizeof where);
    if (valkyrie_client_connect(where, &said, &client, NULL)) fail("cannot connect to the private server %s", where);
    return client;
}

/* How the tokens of one case are made. */
typedef struct {
    const char *token, *source;
    int asked; /* written by one thread at a time, read by another in between its calls */
} token_maker;

static void make_token(uint64_t request, void *user_data) {
    token_maker *maker = (token_maker *)user_data;
    int asked = __atomic_add_fetch(&maker->asked, 1, __ATOMIC_SEQ_CST);
    valkyrie_bytes none = {NULL, 0};
    if (!strcmp(maker->source, "silent")) return;
    if (!strcmp(maker->source, "fails") || (!strcmp(maker->source, "once") && asked > 1))
        valkyrie_token_provide(request, none, "no token today");
    else valkyrie_token_provide(request, words(maker->token), NULL);
}

/* What is logged while a token is shown, which may not be in it. */
typedef struct {
    valkyrie_queue *queue;
    const char *token;
    int connected, shown;
} listener;

static int holds(valkyrie_bytes bytes, const char *what) {
    size_t length = strlen(what);
    for (size_t at = 0; at + length <= bytes.len; at++) {
        if (!memcmp(bytes.data + at, what, length)) return 1;
    }
    return 0;
}

static void listen_on(listener *here);

static void hear(const valkyrie_completion *completion, void *user_data) {
    listener *here = (listener *)user_data;
    if (completion->code) {
        valkyrie_error_free(completion->error);
        return;
    }
    valkyrie_bytes sentence = valkyrie_message_bytes(completion->message), key, value;
    const valkyrie_metadata *facts = valkyrie_message_metadata(completion->message);
    if (holds(sentence, "connected to ")) here->connected = 1;
    if (here->token && holds(sentence, here->token)) here->shown = 1;
    for (size_t i = 0; here->token && valkyrie_metadata_at(facts, i, &key, &value); i++) {
        if (holds(value, here->token)) here->shown = 1;
    }
    valkyrie_message_free(completion->message);
    listen_on(here);
}

static void listen_on(listener *here) {
    valkyrie_operation operation = VALKYRIE_OPERATION_INIT(VALKYRIE_OPERATION_LOG);
    operation.target = "debug";
    if (valkyrie_operation_start(here->queue, &operation, NULL, NULL, hear, here)) fail("nothing can be heard");
}

/* A stream and calls of a client that shows tokens; the outcome of the last, or of the first that fails. */
static got show_tokens(valkyrie_client *client, const test_case *one, token_maker *maker) {
    valkyrie_call *stream = NULL;
    valkyrie_message *message = NULL;
    valkyrie_error *error = NULL;
    valkyrie_code code = valkyrie_client_open(client, "/echo", NULL, &stream, &error);
    if (!code && number(one, "hold")) {
        code = valkyrie_call_recv(stream, &message, &error);
        valkyrie_call_free(stream);
        return settle(code, message, error);
    }
    for (size_t i = 1; !code && i < number(one, "count"); i++) {
        got before = call(client, one);
        if (before.code) fail("call %zu ended with %s", i, valkyrie_code_name(before.code));
        drop(&before);
    }
    while (!code && __atomic_load_n(&maker->asked, __ATOMIC_SEQ_CST) < (int)number(one, "asked")) {
        code = valkyrie_call_send(stream, words("x"), &error);
        if (!code) code = valkyrie_call_recv(stream, &message, &error);
        if (!code && !message) fail("the stream ended meanwhile");
        valkyrie_message_free(message);
        message = NULL;
        got between = call(client, one);
        if (between.code) fail("a call ended with %s meanwhile", valkyrie_code_name(between.code));
        drop(&between);
    }
    valkyrie_call_free(stream);
    return code ? settle(code, NULL, error) : call(client, one);
}

static void shut_down(valkyrie_client *client, const char *how) {
    valkyrie_message *response = NULL;
    valkyrie_client_call(client, "/test/shutdown", words(how), NULL, &response, NULL);
    valkyrie_message_free(response);
}

/* ---- another service config, and breakers ---- */

static void run_reconfigured(const test_case *one) {
    valkyrie_client_options said = options;
    valkyrie_client *client = NULL;
    valkyrie_error *error = NULL;
    said.service_config = raw(one, "service_config");
    if (valkyrie_client_connect(endpoint, &said, &client, NULL)) fail("cannot connect");
    got first = call(client, one);
    if (strcmp(raw(one, "first_code"), valkyrie_code_name(first.code)))
        fail("the first call: %s", valkyrie_code_name(first.code));
    drop(&first);
    valkyrie_code code = valkyrie_client_set_service_config(client, raw(one, "then_config"), &error);
    check_and_drop(one, code ? settle(code, NULL, error) : call(client, one));
    valkyrie_client_free(client);
}

/* A message as text, "" of none, and frees it; the caller frees the text. */
static char *text_of(valkyrie_message *message) {
    valkyrie_bytes bytes = valkyrie_message_bytes(message);
    char *out = (char *)calloc(1, bytes.len + 1);
    if (bytes.len) memcpy(out, bytes.data, bytes.len);
    valkyrie_message_free(message);
    return out;
}

/* The text of the breakers; the caller frees it. */
static char *breakers_of(valkyrie_client *client) {
    valkyrie_message *message = NULL;
    if (valkyrie_client_breakers(client, &message, NULL)) fail("no breakers");
    return text_of(message);
}

/* Adds the reason of a call's end to `seen`. */
static void reason_of(valkyrie_client *client, const char *method, char *seen, size_t size) {
    valkyrie_message *response = NULL;
    valkyrie_error *error = NULL;
    valkyrie_code code = valkyrie_client_call(client, method, words("1"), NULL, &response, &error);
    valkyrie_bytes reason = valkyrie_error_reason(error);
    size_t used = strlen(seen);
    snprintf(seen + used, size - used, "%s%.*s", used ? " " : "", code ? (int)reason.len : 2, code ? (const char *)reason.data : "OK");
    valkyrie_message_free(response);
    valkyrie_error_free(error);
}

static void hold(valkyrie_client *client, const char *server, const char *method, bool isolated) {
    if (valkyrie_client_isolate(client, server, method, isolated, NULL)) fail("%s is not held", server);
}

/* Of the server as a whole, and of one of its methods. */
static void run_isolate(const test_case *one) {
    valkyrie_client *client = NULL;
    valkyrie_error *error = NULL;
    const char *method = raw(one, "method"), *other = "/test/sleep";
    char seen[256] = {0}, server[256] = {0}, *shown;
    if (valkyrie_client_connect(endpoint, &options, &client, NULL)) fail("cannot connect");
    reason_of(client, method, seen, sizeof seen);
    shown = breakers_of(client);
    sscanf(shown, "[{\"server\":\"%255[^\"]", server);
    free(shown);
    hold(client, server, NULL, true);
    reason_of(client, method, seen, sizeof seen);
    reason_of(client, other, seen, sizeof seen);
    shown = breakers_of(client);
    if (!strstr(shown, "\"method\":null,\"state\":\"isolated\"")) fail("not isolated: %s", shown);
    free(shown);
    hold(client, server, NULL, false);
    reason_of(client, method, seen, sizeof seen);
    hold(client, server, method, true);
    reason_of(client, method, seen, sizeof seen);
    reason_of(client, other, seen, sizeof seen);
    hold(client, server, method, false);
    reason_of(client, method, seen, sizeof seen);
    shown = breakers_of(client);
    if (strstr(shown, "isolated")) fail("not restored: %s", shown);
    free(shown);
    if (strcmp(seen, raw(one, "reasons"))) fail("%s", seen);
    valkyrie_code code = valkyrie_client_isolate(client, "tcp://192.0.2.1:1", NULL, true, &error);
    check_and_drop(one, settle(code, NULL, error));
    valkyrie_client_free(client);
}

typedef struct {
    char *shown;
    uint64_t seen;
    valkyrie_code code;
} watched_breakers;

static void on_breakers(const valkyrie_completion *completion, void *user_data) {
    watched_breakers *watched = (watched_breakers *)user_data;
    free(watched->shown);
    watched->shown = text_of(completion->message);
    watched->seen = completion->seen;
    watched->code = completion->code;
    valkyrie_error_free(completion->error);
}

/* Begins to wait for others than those that were seen. */
static void watch_breakers(valkyrie_client *client, valkyrie_queue *queue, watched_breakers *watched) {
    valkyrie_operation operation = VALKYRIE_OPERATION_INIT(VALKYRIE_OPERATION_BREAKERS);
    operation.client = client;
    operation.seen = watched->seen;
    if (valkyrie_operation_start(queue, &operation, NULL, NULL, on_breakers, watched)) fail("no breaker can be watched");
}

/* Nothing yet, a breaker that changes by itself, and the end. */
static void run_breaker_changes(const test_case *one) {
    valkyrie_client_options said = options;
    valkyrie_client *client = NULL;
    valkyrie_queue *queue = NULL;
    watched_breakers watched = {NULL, 0, 0};
    char wanted[256];
    said.service_config = raw(one, "service_config");
    if (valkyrie_client_connect(endpoint, &said, &client, NULL)) fail("cannot connect");
    valkyrie_queue_new(&queue, NULL);
    watch_breakers(client, queue, &watched);
    if (!valkyrie_queue_dispatch(queue, 60000) || strcmp(watched.shown, "[]")) fail("before: %s", watched.shown);
    watch_breakers(client, queue, &watched);
    for (size_t i = 0; i < number(one, "count"); i++) {
        got answer = call(client, one);
        drop(&answer);
    }
    snprintf(wanted, sizeof wanted, "\"method\":\"%s\",\"state\":\"%s\"", raw(one, "method"), raw(one, "state"));
    if (!valkyrie_queue_dispatch(queue, 60000) || !strstr(watched.shown, wanted)) fail("no change: %s", watched.shown);
    watch_breakers(client, queue, &watched);
    valkyrie_client_close(client, NULL);
    if (!valkyrie_queue_dispatch(queue, 60000) || watched.code != VALKYRIE_CODE_CANCELLED) fail("closed, and %s", watched.shown);
    free(watched.shown);
    valkyrie_queue_free(queue);
    valkyrie_client_free(client);
}

/* ---- connectivity ---- */

static void on_change(const valkyrie_completion *completion, void *user_data) {
    *(uint32_t *)user_data = completion->connectivity;
    if (completion->code) fail("no change is told: %s", valkyrie_error_message(completion->error));
    valkyrie_error_free(completion->error);
}

/* Begins to wait for what it becomes, which `state` gets. */
static void watch(valkyrie_client *client, valkyrie_queue *queue, uint32_t *state) {
    valkyrie_operation operation = VALKYRIE_OPERATION_INIT(VALKYRIE_OPERATION_CONNECTIVITY);
    operation.client = client;
    operation.connectivity = *state;
    if (valkyrie_operation_start(queue, &operation, NULL, NULL, on_change, state)) fail("nothing can be watched");
}

/* Ready, another while the server goes, and the end. */
static void run_connectivity(const test_case *one) {
    valkyrie_client *client = private_server(one);
    valkyrie_queue *queue = NULL;
    uint32_t state = valkyrie_client_connectivity(client);
    if (state != VALKYRIE_CONNECTIVITY_READY) fail("connected, and %u", state);
    valkyrie_queue_new(&queue, NULL);
    watch(client, queue, &state);
    shut_down(client, raw(one, "how"));
    if (!valkyrie_queue_dispatch(queue, 60000) || state == VALKYRIE_CONNECTIVITY_READY) fail("still ready");
    snprintf(detail + strlen(detail), sizeof detail - strlen(detail), "%u in between", state);
    watch(client, queue, &state);
    valkyrie_client_close(client, NULL);
    while (!failed && valkyrie_queue_dispatch(queue, 60000) && state != VALKYRIE_CONNECTIVITY_SHUTDOWN)
        watch(client, queue, &state);
    if (state != VALKYRIE_CONNECTIVITY_SHUTDOWN || valkyrie_client_connectivity(client) != state)
        fail("closed, and %u", state);
    valkyrie_queue_free(queue);
    valkyrie_client_free(client);
}

/* ---- actions ---- */

static void refused(valkyrie_code code) {
    if (code != VALKYRIE_CODE_INVALID_ARGUMENT) fail("expected INVALID_ARGUMENT, got %s", valkyrie_code_name(code));
}

/* 0 is the default in C, and never has a name of its own. */
static uint64_t or_never(const test_case *one, const char *key) {
    return raw(one, key) && !number(one, key) ? VALKYRIE_NO_TIMEOUT : number(one, key);
}

static int has_nul(const char *hex) {
    for (; hex && *hex; hex += 2)
        if (hex[0] == '0' && hex[1] == '0') return 1;
    return 0;
}

static void run(const test_case *one) {
    const char *action = raw(one, "action");
    size_t count = 0, wanted = number(one, "count");
    if (!strcmp(action, "request")) {
        valkyrie_message *response = NULL;
        valkyrie_error *error = NULL;
        owned message = message_of(one);
        valkyrie_code code = valkyrie_client_request(shared, lend(message), &response, &error);
        check_and_drop(one, settle(code, response, error));
        free(message.data);
    } else if (!strcmp(action, "unary")) {
        check_and_drop(one, call(shared, one));
    } else if (!strcmp(action, "twice")) {
        /* With the same options; a server says which of the answers is not the first of its key. */
        got first = call(shared, one);
        char *other = text(one, "then_message");
        owned message = {(uint8_t *)other, other ? strlen(other) : 0};
        got then = call_with(shared, one, other ? message : message_of(one));
        if (raw(one, "then_code") && strcmp(raw(one, "then_code"), valkyrie_code_name(then.code)))
            fail("the second call: %s %s", valkyrie_code_name(then.code), valkyrie_error_message(then.error));
        if (raw(one, "then_reply") && !same(lend(then.message), raw(one, "then_reply")))
            fail("the second reply: %.*s", (int)then.message.len, (const char *)then.message.data);
        if (is_replayed(&first)) fail("the first answer is replayed");
        if (is_replayed(&then) != (number(one, "replayed") == 1)) fail("replayed: %d", is_replayed(&then));
        drop(&then);
        check_and_drop(one, first);
    } else if (!strcmp(action, "stream_with_key")) {
        valkyrie_call *stream = open_stream(shared, one);
        check_and_drop(one, receive_all(one, stream, &count, 0, NULL));
        valkyrie_call_free(stream);
    } else if (!strcmp(action, "server_stream")) {
        valkyrie_call *stream = server_stream(shared, one);
        got end = receive_all(one, stream, &count, 1, NULL);
        if (count != wanted) fail("expected %zu messages, got %zu", wanted, count);
        check_and_drop(one, end);
        valkyrie_call_free(stream);
    } else if (!strcmp(action, "client_stream")) {
        valkyrie_call *stream = open_stream(shared, one);
        valkyrie_message *last = NULL;
        for (size_t i = 0; i < wanted && send_one(one, stream, i); i++) {}
        valkyrie_call_half_close(stream, NULL);
        got end = receive_all(one, stream, &count, 0, &last);
        if (!end.code && count != 1) fail("expected one reply, got %zu", count);
        end.message.data = (uint8_t *)valkyrie_message_bytes(last).data;
        end.message.len = valkyrie_message_bytes(last).len;
        check_and_drop(one, end);
        valkyrie_message_free(last);
        valkyrie_call_free(stream);
    } else if (!strcmp(action, "bidi")) {
        valkyrie_call *stream = open_stream(shared, one);
        int lockstep = number(one, "lockstep") == 1;
        for (size_t i = 0; i < wanted && !failed; i++)
            if (send_one(one, stream, i) && lockstep) receive_one(one, stream, i);
        valkyrie_call_half_close(stream, NULL);
        for (size_t i = 0; i < wanted && !lockstep && receive_one(one, stream, i); i++) {}
        got end = receive_all(one, stream, &count, 0, NULL);
        if (count) fail("a message after the last");
        check_and_drop(one, end);
        valkyrie_call_free(stream);
    } else if (!strcmp(action, "cancel_before") || !strcmp(action, "cancel_during") || !strcmp(action, "cancel_after")) {
        worker beside;
        memset(&beside, 0, sizeof beside);
        beside.client = shared;
        beside.one = one;
        valkyrie_queue_new(&beside.queue, NULL);
        start(&beside);
        if (!strcmp(action, "cancel_during")) hang_until(one, "started");
        if (!strcmp(action, "cancel_after")) finish(&beside);
        valkyrie_operation_cancel(beside.operation);
        valkyrie_operation_cancel(beside.operation);
        finish(&beside);
        if (beside.done != 1) fail("%d completions", beside.done);
        check_and_drop(one, beside.result);
        if (!strcmp(action, "cancel_after")) check_and_drop(one, call(shared, one));
        valkyrie_queue_free(beside.queue);
    } else if (!strcmp(action, "cancel_times")) {
        uint64_t took[1000];
        test_case round = *one;
        for (count = 0; count < wanted && count < 1000 && !failed; count++) {
            worker beside;
            struct timespec now;
            memset(&beside, 0, sizeof beside);
            snprintf(round.token, sizeof round.token, "%.40s-%zu", one->token, count);
            beside.client = shared;
            beside.one = &round;
            valkyrie_queue_new(&beside.queue, NULL);
            start(&beside);
            hang_until(&round, "started");
            clock_gettime(CLOCK_REALTIME, &now);
            valkyrie_operation_cancel(beside.operation);
            finish(&beside);
            check_and_drop(&round, beside.result);
            uint64_t since = (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
            uint64_t dropped = hang_until(&round, "dropped");
            took[count] = dropped > since ? dropped - since : 0;
            valkyrie_queue_free(beside.queue);
        }
        qsort(took, count, sizeof *took, by_size);
        if (!failed)
            snprintf(detail, sizeof detail, "%llu µs, %llu at worst", (unsigned long long)took[count / 2],
                     (unsigned long long)took[count - 1]);
    } else if (!strcmp(action, "cancel_stream")) {
        worker beside;
        pthread_t thread;
        owned message = message_of(one);
        memset(&beside, 0, sizeof beside);
        beside.one = one;
        beside.stream = open_stream(shared, one);
        valkyrie_call_send(beside.stream, lend(message), NULL);
        hang_until(one, "started");
        pthread_create(&thread, NULL, receive_in_thread, &beside);
        valkyrie_call_cancel(beside.stream);
        pthread_join(thread, NULL);
        check_and_drop(one, beside.result);
        valkyrie_call_free(beside.stream);
        free(message.data);
    } else if (!strcmp(action, "leave_stream")) {
        valkyrie_call *stream = server_stream(shared, one);
        for (size_t i = 0; i < wanted; i++) {
            valkyrie_message *message = NULL;
            if (valkyrie_call_recv(stream, &message, NULL) || !message) fail("the stream ended early");
            valkyrie_message_free(message);
        }
        valkyrie_call_free(stream);
        check_and_drop(one, echo(shared));
    } else if (!strcmp(action, "in_flight")) {
        valkyrie_queue *queue = NULL;
        worker *all = (worker *)calloc(wanted, sizeof *all);
        char *method = text(one, "method");
        call_setup setup;
        size_t done = 0;
        set_up(one, &setup);
        valkyrie_queue_new(&queue, NULL);
        for (size_t i = 0; i < wanted; i++) {
            char digits[32];
            owned message = {(uint8_t *)digits, (size_t)snprintf(digits, sizeof digits, "%zu", i)};
            all[i].client = shared;
            all[i].queue = queue;
            if (start_call(&all[i], method, message, &setup)) fail("call %zu was refused", i);
        }
        while (done < wanted && !failed) {
            size_t more = valkyrie_queue_dispatch(queue, 60000);
            if (!more) fail("%zu of %zu calls do not end", wanted - done, wanted);
            done += more;
        }
        for (size_t i = 0; i < wanted; i++) {
            char digits[32];
            snprintf(digits, sizeof digits, "%zu", i);
            if (all[i].result.code || !same(lend(all[i].result.message), digits)) fail("reply %zu is wrong", i);
            drop(&all[i].result);
        }
        tear_down(&setup);
        valkyrie_queue_free(queue);
        free(method);
        free(all);
    } else if (!strcmp(action, "go_away")) {
        valkyrie_client *client = private_server(one);
        valkyrie_call *stream = server_stream(client, one);
        for (; count < wanted; count++) {
            valkyrie_message *message = NULL;
            if (valkyrie_call_recv(stream, &message, NULL) || !message) fail("the stream ended after %zu", count);
            valkyrie_message_free(message);
        }
        shut_down(client, raw(one, "how"));
        got end = receive_all(one, stream, &count, 0, NULL);
        if (raw(one, "total") && count != number(one, "total"))
            fail("expected %zu messages, got %zu", number(one, "total"), count);
        check_and_drop(one, end);
        got after = echo(client);
        if (raw(one, "then_code") && strcmp(raw(one, "then_code"), valkyrie_code_name(after.code)))
            fail("then: expected %s, got %s", raw(one, "then_code"), valkyrie_code_name(after.code));
        drop(&after);
        valkyrie_call_free(stream);
        valkyrie_client_free(client);
    } else if (!strcmp(action, "credentials") && has_nul(raw(one, "method_hex"))) {
        snprintf(detail, sizeof detail, "a text ends at its NUL");
    } else if (!strcmp(action, "credentials")) {
        static const valkyrie_client_options fresh = VALKYRIE_CLIENT_OPTIONS_INIT;
        valkyrie_client_options with = raw(one, "endpoint") ? fresh : options;
        /* A thread that was not waited for may still count. */
        static token_maker maker;
        maker.token = raw(one, "token");
        maker.source = raw(one, "source");
        __atomic_store_n(&maker.asked, 0, __ATOMIC_SEQ_CST);
        valkyrie_client *client = NULL;
        valkyrie_error *error = NULL;
        char where[256];
        if (raw(one, "endpoint")) snprintf(where, sizeof where, "%s", raw(one, "endpoint"));
        else open_server(raw(one, "server") ? raw(one, "server") : "credentials", where, sizeof where);
        listener heard = {NULL, maker.token, 0, 0};
        if (valkyrie_queue_new(&heard.queue, NULL)) fail("no queue");
        listen_on(&heard);
        with.connect_timeout_ms = number(one, "connect_timeout_ms");
        if (!maker.source) with.token = maker.token;
        else {
            with.token_source = make_token;
            with.token_user_data = &maker;
        }
        valkyrie_code code = valkyrie_client_connect(where, &with, &client, &error);
        got end = code ? settle(code, NULL, error) : show_tokens(client, one, &maker);
        if (maker.token && end.error && strstr(valkyrie_error_message(end.error), maker.token)) fail("the token is shown");
        while (end.code == 0 && !heard.connected && valkyrie_queue_dispatch(heard.queue, 60000)) continue;
        if (end.code == 0 && !heard.connected) fail("nothing of the connection is logged");
        while (valkyrie_queue_dispatch(heard.queue, 0)) continue;
        if (heard.shown) fail("the token is logged");
        valkyrie_queue_free(heard.queue);
        check_and_drop(one, end);
        valkyrie_client_free(client);
    } else if (!strcmp(action, "connect")) {
        valkyrie_client *client = NULL;
        valkyrie_error *error = NULL;
        char *where = text(one, "endpoint");
        valkyrie_code code = valkyrie_client_connect(where, &options, &client, &error);
        check_and_drop(one, code ? settle(code, NULL, error) : echo(client));
        valkyrie_client_free(client);
        free(where);
    } else if (!strcmp(action, "connect_with")) {
        /* As the case says, and in no other way. */
        valkyrie_client_options said = VALKYRIE_CLIENT_OPTIONS_INIT;
        valkyrie_client *client = NULL;
        valkyrie_error *error = NULL;
        const char *least = raw(one, "min_security");
        char *files[4];
        static const char *const keys[] = {"trusted", "revoked", "identity", "key"};
        for (int i = 0; i < 4; i++) {
            const char *path = raw(one, keys[i]);
            files[i] = path ? (char *)malloc(strlen(path) + 6) : NULL;
            if (path) sprintf(files[i], "file:%s", path);
        }
        said.trusted_certificates = files[0];
        said.revocation_lists = files[1];
        said.identity_certificates = files[2];
        said.identity_key = files[3];
        said.server_name = raw(one, "server_name");
        said.sealed = (uint32_t)number(one, "sealed");
        if (least) said.min_security = strcmp(least, "tls") ? VALKYRIE_SECURITY_MTLS : VALKYRIE_SECURITY_TLS;
        valkyrie_code code = valkyrie_client_connect(raw(one, "endpoint"), &said, &client, &error);
        check_and_drop(one, code ? settle(code, NULL, error) : echo(client));
        valkyrie_client_free(client);
        for (int i = 0; i < 4; i++) free(files[i]);
    } else if (!strcmp(action, "configured")) {
        valkyrie_client_options said = options;
        valkyrie_client *client = NULL;
        valkyrie_error *error = NULL;
        said.service_config = raw(one, "service_config");
        valkyrie_code code = valkyrie_client_connect(endpoint, &said, &client, &error);
        check_and_drop(one, code ? settle(code, NULL, error) : call(client, one));
        valkyrie_client_free(client);
    } else if (!strcmp(action, "keepalive")) {
        valkyrie_client_options said = options;
        valkyrie_client *client = NULL;
        valkyrie_error *error = NULL;
        said.keepalive_ms = or_never(one, "keepalive_ms");
        said.keepalive_timeout_ms = or_never(one, "keepalive_timeout_ms");
        said.keepalive_idle_ms = or_never(one, "keepalive_idle_ms");
        valkyrie_code code = valkyrie_client_connect(endpoint, &said, &client, &error);
        check_and_drop(one, code ? settle(code, NULL, error) : echo(client));
        valkyrie_client_free(client);
    } else if (!strcmp(action, "bad_metadata")) {
        got result = call(shared, one);
        refused(result.code);
        drop(&result);
    } else if (!strcmp(action, "wrong_type")) {
        /* The compiler refuses other types; what is left are the values that no type forbids. */
        const char *argument = raw(one, "argument");
        valkyrie_message *response = NULL;
        valkyrie_bytes lie = {NULL, 42};
        valkyrie_call_options options = VALKYRIE_CALL_OPTIONS_INIT;
        valkyrie_client_options configured = VALKYRIE_CLIENT_OPTIONS_INIT;
        valkyrie_client *client = NULL;
        configured.service_config = "\xff";
        if (!strcmp(argument, "idempotent")) options.idempotent = 42;
        else if (!strcmp(argument, "idempotency_key")) options.idempotency_key = lie;
        else options.priority = 42;
        if (!strcmp(argument, "message")) refused(valkyrie_client_request(shared, lie, &response, NULL));
        else if (!strcmp(argument, "method"))
            refused(valkyrie_client_call(shared, NULL, words("x"), NULL, &response, NULL));
        else if (!strcmp(argument, "service_config"))
            refused(valkyrie_client_connect(endpoint, &configured, &client, NULL));
        else refused(valkyrie_client_call(shared, "/echo", words("x"), &options, &response, NULL));
    } else if (!strcmp(action, "reconfigured")) {
        run_reconfigured(one);
    } else if (!strcmp(action, "isolate")) {
        run_isolate(one);
    } else if (!strcmp(action, "breaker_changes")) {
        run_breaker_changes(one);
    } else if (!strcmp(action, "metrics")) {
        valkyrie_client *client = NULL;
        valkyrie_message *text = NULL;
        if (valkyrie_client_connect(endpoint, &options, &client, NULL)) fail("cannot connect");
        for (; count < wanted; count++) {
            got one_of_them = call(client, one);
            drop(&one_of_them);
        }
        if (valkyrie_client_metrics(client, &text, NULL)) fail("no metrics");
        if (!holds(valkyrie_message_bytes(text), raw(one, "line"))) fail("no %s", raw(one, "line"));
        valkyrie_message_free(text);
        valkyrie_client_free(client);
    } else if (!strcmp(action, "connectivity")) {
        run_connectivity(one);
    } else if (!strcmp(action, "call_closed") || !strcmp(action, "double_close")) {
        valkyrie_client *client = NULL;
        if (valkyrie_client_connect(endpoint, &options, &client, NULL)) fail("cannot connect");
        if (valkyrie_client_close(client, NULL)) fail("close failed");
        if (!strcmp(action, "call_closed")) check_and_drop(one, call(client, one));
        else if (valkyrie_client_close(client, NULL)) fail("the second close failed");
        valkyrie_client_free(client);
    } else if (!strcmp(action, "after_shutdown")) {
        valkyrie_client *client = private_server(one);
        got first = echo(client);
        if (first.code) fail("the private server does not answer");
        drop(&first);
        shut_down(client, "now");
        int tries = 0;
        for (; tries < 100; tries++) {
            got result = call(client, one);
            valkyrie_code code = result.code;
            if (code) check(one, &result);
            drop(&result);
            if (code) break;
        }
        if (tries == 100) fail("100 calls succeeded");
        valkyrie_client_free(client);
    } else if (!strcmp(action, "failover")) {
        run_failover(one);
    } else if (!strcmp(action, "script")) {
        run_script(one);
    } else {
        fail("unknown action %s", action);
    }
}

static char *slurp(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    fseek(file, 0, SEEK_END);
    long len = ftell(file);
    rewind(file);
    char *all = (char *)calloc(1, (size_t)len + 1);
    size_t taken = fread(all, 1, (size_t)len, file);
    fclose(file);
    return taken == (size_t)len ? all : NULL;
}

int main(void) {
    endpoint = getenv("VALKYRIE_CONFORMANCE_ENDPOINT");
    absent = getenv("VALKYRIE_CONFORMANCE_ABSENT_ENDPOINT");
    const char *path = getenv("VALKYRIE_CONFORMANCE_CASES");
    const char *certificates = getenv("VALKYRIE_CONFORMANCE_CERTIFICATES");
    char *cases = path ? slurp(path) : NULL;
    const char *sealed = getenv("VALKYRIE_CONFORMANCE_SEALED");
    options.sealed = sealed && !strcmp(sealed, "1");
    /* Trust is for what is encrypted. */
    int encrypted = options.sealed || (endpoint && (!strncmp(endpoint, "tls:", 4) || !strncmp(endpoint, "wss:", 4) || !strncmp(endpoint, "quic:", 5)));
    if (encrypted && certificates) options.trusted_certificates = slurp(certificates);
    if (!endpoint || !absent || !cases || valkyrie_client_connect(endpoint, &options, &shared, NULL)) {
        fprintf(stderr, "the variables of README.md are not set, or the server does not answer\n");
        return 1;
    }
    test_case one;
    for (int i = 0; parse_case(&cases, &one); i++) {
        snprintf(one.token, sizeof one.token, "c%ldx%d", (long)getpid(), i);
        detail[0] = 0;
        failed = 0;
        alarm(60); /* A hang ends the run, and the empty cells below it say where. */
        run(&one);
        printf("{\"case\":\"%s\",\"ok\":%s,\"detail\":\"", raw(&one, "case"), failed ? "false" : "true");
        for (const char *at = detail; *at; at++) {
            if (*at == '"' || *at == '\\') printf("\\%c", *at);
            else if (*at == '\n') printf("\\n");
            else if ((unsigned char)*at < ' ') printf(" ");
            else putchar(*at);
        }
        printf("\"}\n");
        fflush(stdout);
    }
    valkyrie_client_free(shared);
    return 0;
}

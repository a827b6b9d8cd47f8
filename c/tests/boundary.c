/* What the conformance cases do not see: NULLs, lengths, structures of other versions. Usage: boundary ENDPOINT. */
#include "check.h"

/* A structure as a newer program knows it. */
typedef struct {
    valkyrie_call_options known;
    uint64_t later[4];
} newer_call_options;

typedef struct {
    valkyrie_client_options known;
    uint64_t later[4];
} newer_client_options;

static void nulls(const char *endpoint) {
    valkyrie_error *error = NULL;
    valkyrie_client *client = NULL;
    CHECK(valkyrie_client_connect(NULL, NULL, &client, &error) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(strstr(valkyrie_error_message(error), "endpoint") != NULL);
    CHECK(valkyrie_error_code(error) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(same(valkyrie_error_reason(error), "INVALID_ARGUMENT") && same(valkyrie_error_class(error), "caller"));
    CHECK(valkyrie_error_free(error) == 0);
    CHECK(valkyrie_client_connect(endpoint, NULL, NULL, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_client_close(NULL, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_client_open(NULL, "/echo", NULL, NULL, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_call_send(NULL, text("x"), NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_call_half_close(NULL, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_call_recv(NULL, NULL, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_queue_new(NULL, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_operation_start(NULL, NULL, NULL, NULL, NULL, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_queue_fd(NULL) == -1 && valkyrie_queue_dispatch(NULL, VALKYRIE_NO_TIMEOUT) == 0);
    CHECK(valkyrie_message_bytes(NULL).len == 0 && valkyrie_message_metadata(NULL) == NULL);
    CHECK(valkyrie_metadata_len(NULL) == 0 && !valkyrie_metadata_at(NULL, 0, NULL, NULL));
    CHECK(valkyrie_error_code(NULL) == 0 && strcmp(valkyrie_error_message(NULL), "") == 0);
    CHECK(!valkyrie_error_pushback_ms(NULL, NULL) && !valkyrie_error_detail(NULL, 0, NULL, NULL));
    CHECK(valkyrie_client_free(NULL) == 0 && valkyrie_call_free(NULL) == 0 && valkyrie_queue_free(NULL) == 0);
    CHECK(valkyrie_message_free(NULL) == 0 && valkyrie_error_free(NULL) == 0);
    valkyrie_call_cancel(NULL);
    valkyrie_operation_cancel(UINT64_MAX);
}

static void lengths(const valkyrie_client *client) {
    valkyrie_message *reply = NULL;
    valkyrie_bytes lie = {NULL, 5}, huge = {(const uint8_t *)"x", SIZE_MAX};
    CHECK(valkyrie_client_request(client, lie, &reply, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_client_request(client, huge, &reply, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_client_call(client, "/echo\xff", text("x"), NULL, &reply, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    valkyrie_call_options options = VALKYRIE_CALL_OPTIONS_INIT;
    options.metadata_len = SIZE_MAX;
    CHECK(valkyrie_client_call(client, "/echo", text("x"), &options, &reply, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    valkyrie_metadata_entry entry = {NULL, lie};
    options.metadata = &entry;
    CHECK(valkyrie_client_call(client, "/echo", text("x"), &options, &reply, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    options.metadata_len = 1;
    CHECK(valkyrie_client_call(client, "/echo", text("x"), &options, &reply, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    entry.key = "key";
    CHECK(valkyrie_client_call(client, "/echo", text("x"), &options, &reply, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(reply == NULL);
}

/* Calls with options of some size; the code, and the error's sentence in `said`. */
static valkyrie_code call_with(const valkyrie_client *client, const valkyrie_call_options *options, char said[256]) {
    valkyrie_message *reply = NULL;
    valkyrie_error *error = NULL;
    valkyrie_code code = valkyrie_client_call(client, "/test/remaining", text(""), options, &reply, &error);
    valkyrie_bytes bytes = valkyrie_message_bytes(reply);
    snprintf(said, 256, "%.*s%s", (int)bytes.len, (const char *)bytes.data, valkyrie_error_message(error));
    valkyrie_message_free(reply);
    valkyrie_error_free(error);
    return code;
}

static void structures_of_other_versions(const char *endpoint, const valkyrie_client *client) {
    char said[256];
    newer_call_options options;
    memset(&options, 0, sizeof options);
    options.known.timeout_ms = 7200000;
    /* Older programs: what ends before the metadata has a time limit, what ends before that has not. */
    options.known.metadata_len = SIZE_MAX;
    options.known.struct_size = offsetof(valkyrie_call_options, metadata);
    CHECK(call_with(client, &options.known, said) == 0 && atoll(said) > 3600000);
    options.known.struct_size = offsetof(valkyrie_call_options, timeout_ms);
    CHECK(call_with(client, &options.known, said) == 0 && atoll(said) < 3600000);
    options.known.metadata_len = 0;
    /* What ends before idempotent has none. */
    options.known.idempotent = 42;
    options.known.struct_size = offsetof(valkyrie_call_options, idempotent);
    CHECK(call_with(client, &options.known, said) == 0 && atoll(said) > 3600000);
    options.known.struct_size = sizeof options;
    CHECK(call_with(client, &options.known, said) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(strstr(said, "idempotent is 42, not 0 or 1") != NULL);
    options.known.idempotent = 1;
    /* What ends before the idempotency key has none. */
    valkyrie_bytes no_key = {NULL, 0}, lie = {NULL, 5};
    options.known.idempotency_key = lie;
    options.known.struct_size = offsetof(valkyrie_call_options, idempotency_key);
    CHECK(call_with(client, &options.known, said) == 0);
    options.known.struct_size = sizeof options;
    CHECK(call_with(client, &options.known, said) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(strstr(said, "idempotency_key is NULL with a length of 5") != NULL);
    options.known.idempotency_key = text("a key");
    options.known.draw_idempotency_key = 1;
    CHECK(call_with(client, &options.known, said) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(strstr(said, "exclude each other") != NULL);
    options.known.draw_idempotency_key = 2;
    CHECK(call_with(client, &options.known, said) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(strstr(said, "draw_idempotency_key is 2, not 0 or 1") != NULL);
    options.known.draw_idempotency_key = 0;
    options.known.idempotency_key = no_key;
    /* A newer program that asks for nothing new, and one that does. */
    options.known.struct_size = sizeof options;
    CHECK(call_with(client, &options.known, said) == 0 && atoll(said) > 3600000);
    options.later[3] = 1;
    CHECK(call_with(client, &options.known, said) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(strstr(said, "newer library") != NULL);
    /* Sizes of no version: none, within a field, and one that would read far away. */
    uint32_t sizes[] = {0, 4, 12, offsetof(valkyrie_call_options, metadata) + 1, UINT32_MAX};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        options.known.struct_size = sizes[i];
        CHECK(call_with(client, &options.known, said) == VALKYRIE_CODE_INVALID_ARGUMENT);
        CHECK(strstr(said, "struct_size") != NULL);
    }

    newer_client_options wanted;
    memset(&wanted, 0, sizeof wanted);
    valkyrie_client *other = NULL;
    wanted.known.trusted_certificates = (const char *)1;
    wanted.known.struct_size = offsetof(valkyrie_client_options, trusted_certificates);
    CHECK(valkyrie_client_connect(endpoint, &wanted.known, &other, NULL) == 0);
    valkyrie_client_free(other);
    wanted.known.trusted_certificates = NULL;
    wanted.known.struct_size = sizeof wanted;
    CHECK(valkyrie_client_connect(endpoint, &wanted.known, &other, NULL) == 0);
    valkyrie_client_free(other);
    wanted.later[0] = 1;
    CHECK(valkyrie_client_connect(endpoint, &wanted.known, &other, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    /* A program whose structure ended behind token_user_data. */
    wanted.known.service_config = (const char *)1;
    wanted.known.struct_size = offsetof(valkyrie_client_options, service_config);
    CHECK(valkyrie_client_connect(endpoint, &wanted.known, &other, NULL) == 0);
    valkyrie_client_free(other);
    /* A program whose structure ended behind service_config. */
    wanted.known.service_config = NULL;
    wanted.known.keepalive_ms = 1;
    wanted.known.struct_size = offsetof(valkyrie_client_options, keepalive_ms);
    CHECK(valkyrie_client_connect(endpoint, &wanted.known, &other, NULL) == 0);
    valkyrie_client_free(other);
    /* A program of the first version, whose structure ended behind trusted_certificates. */
    wanted.known.min_security = 99;
    wanted.known.struct_size = offsetof(valkyrie_client_options, revocation_lists);
    CHECK(valkyrie_client_connect(endpoint, &wanted.known, &other, NULL) == 0);
    valkyrie_client_free(other);
}

static void on_change(const valkyrie_completion *completion, void *user_data) {
    CHECK(completion->kind == VALKYRIE_OPERATION_CONNECTIVITY && completion->message == NULL);
    *(uint32_t *)user_data = completion->code != 0 ? 42 : completion->connectivity;
    valkyrie_error_free(completion->error);
}

static void connectivity(const char *endpoint) {
    valkyrie_operation changes = VALKYRIE_OPERATION_INIT(VALKYRIE_OPERATION_CONNECTIVITY);
    valkyrie_client *client = connect_to(endpoint);
    valkyrie_queue *queue = NULL;
    uint32_t state = 0;
    uint64_t number;
    CHECK(valkyrie_queue_new(&queue, NULL) == 0);
    CHECK(valkyrie_client_connectivity(NULL) == VALKYRIE_CONNECTIVITY_SHUTDOWN);
    CHECK(valkyrie_client_connectivity(client) == VALKYRIE_CONNECTIVITY_READY);
    CHECK(valkyrie_operation_start(queue, &changes, NULL, NULL, on_change, &state) == VALKYRIE_CODE_INVALID_ARGUMENT);
    changes.client = client;
    changes.connectivity = 5;
    CHECK(valkyrie_operation_start(queue, &changes, NULL, NULL, on_change, &state) == VALKYRIE_CODE_INVALID_ARGUMENT);
    changes.connectivity = VALKYRIE_CONNECTIVITY_READY;
    changes.reserved = 1;
    CHECK(valkyrie_operation_start(queue, &changes, NULL, NULL, on_change, &state) == VALKYRIE_CODE_INVALID_ARGUMENT);
    /* A program whose structure ended before asks whether the client is idle no more. */
    changes.struct_size = offsetof(valkyrie_operation, connectivity);
    CHECK(valkyrie_operation_start(queue, &changes, NULL, NULL, on_change, &state) == 0);
    CHECK(valkyrie_queue_dispatch(queue, 60000) == 1 && state == VALKYRIE_CONNECTIVITY_READY);
    changes.struct_size = sizeof changes;
    changes.reserved = 0;
    CHECK(valkyrie_operation_start(queue, &changes, &number, NULL, on_change, &state) == 0);
    CHECK(valkyrie_in_flight() == 0);
    valkyrie_operation_cancel(number);
    CHECK(valkyrie_queue_dispatch(queue, 60000) == 1 && state == 42);
    CHECK(valkyrie_operation_start(queue, &changes, NULL, NULL, on_change, &state) == 0);
    CHECK(valkyrie_client_free(client) == 0);
    CHECK(valkyrie_queue_dispatch(queue, 60000) == 1 && state == VALKYRIE_CONNECTIVITY_SHUTDOWN);
    CHECK(valkyrie_queue_free(queue) == 0);
}

typedef struct {
    uint64_t seen;
    valkyrie_code code;
    char shown[1024];
} watched;

static void on_breakers(const valkyrie_completion *completion, void *user_data) {
    watched *out = (watched *)user_data;
    valkyrie_bytes bytes = valkyrie_message_bytes(completion->message);
    CHECK(completion->kind == VALKYRIE_OPERATION_BREAKERS && (completion->seen == 0) == (completion->code != 0));
    CHECK((completion->message == NULL) == (completion->code != 0) && bytes.len < sizeof out->shown);
    out->seen = completion->seen;
    out->code = completion->code;
    snprintf(out->shown, sizeof out->shown, "%.*s", (int)bytes.len, bytes.data ? (const char *)bytes.data : "");
    valkyrie_message_free(completion->message);
    valkyrie_error_free(completion->error);
}

static void breakers_told(const char *endpoint) {
    valkyrie_operation changes = VALKYRIE_OPERATION_INIT(VALKYRIE_OPERATION_BREAKERS);
    valkyrie_client *client = connect_to(endpoint);
    valkyrie_queue *queue = NULL;
    watched now = {0, 0, ""};
    uint64_t number, first;
    CHECK(valkyrie_queue_new(&queue, NULL) == 0);
    CHECK(valkyrie_operation_start(queue, &changes, NULL, NULL, on_breakers, &now) == VALKYRIE_CODE_INVALID_ARGUMENT);
    changes.client = client;
    /* A program whose structure ended before has seen none. */
    changes.seen = 42;
    changes.struct_size = offsetof(valkyrie_operation, seen);
    CHECK(valkyrie_operation_start(queue, &changes, NULL, NULL, on_breakers, &now) == 0);
    CHECK(valkyrie_queue_dispatch(queue, 60000) == 1 && strcmp(now.shown, "[]") == 0);
    changes.struct_size = sizeof changes;
    first = changes.seen = now.seen;
    CHECK(valkyrie_operation_start(queue, &changes, &number, NULL, on_breakers, &now) == 0);
    CHECK(valkyrie_in_flight() == 0);
    valkyrie_operation_cancel(number);
    CHECK(valkyrie_queue_dispatch(queue, 60000) == 1 && now.code == VALKYRIE_CODE_CANCELLED);
    CHECK(valkyrie_operation_start(queue, &changes, NULL, NULL, on_breakers, &now) == 0);
    echo(client, "which changes no breaker");
    CHECK(valkyrie_queue_dispatch(queue, 0) == 0);
    CHECK(valkyrie_client_isolate(client, endpoint, "/echo", true, NULL) == 0);
    CHECK(valkyrie_queue_dispatch(queue, 60000) == 1 && strstr(now.shown, "\"method\":\"/echo\",\"state\":\"isolated\""));
    CHECK(now.code == 0 && now.seen != first);
    changes.seen = now.seen;
    CHECK(valkyrie_operation_start(queue, &changes, NULL, NULL, on_breakers, &now) == 0);
    CHECK(valkyrie_client_free(client) == 0);
    CHECK(valkyrie_queue_dispatch(queue, 60000) == 1 && now.code == VALKYRIE_CODE_CANCELLED);
    CHECK(valkyrie_operation_start(queue, &changes, NULL, NULL, on_breakers, &now) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_queue_free(queue) == 0);
}

static void breakers(const char *endpoint) {
    valkyrie_client *client = connect_to(endpoint);
    valkyrie_message *shown = NULL;
    valkyrie_error *error = NULL;
    CHECK(valkyrie_client_breakers(client, NULL, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_client_breakers(NULL, &shown, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT && shown == NULL);
    CHECK(valkyrie_client_breakers(client, &shown, NULL) == 0 && same(valkyrie_message_bytes(shown), "[]"));
    CHECK(valkyrie_message_free(shown) == 0);
    CHECK(valkyrie_client_metrics(client, NULL, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_client_metrics(client, &shown, NULL) == 0 && valkyrie_message_bytes(shown).len > 100);
    CHECK(valkyrie_message_free(shown) == 0);
    CHECK(valkyrie_client_isolate(client, NULL, NULL, true, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_client_isolate(client, "tcp://192.0.2.1:1", "/echo", true, &error) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(strstr(valkyrie_error_message(error), "192.0.2.1") != NULL);
    valkyrie_error_free(error);
    CHECK(valkyrie_client_set_service_config(client, NULL, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_client_set_service_config(client, "{", NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_client_set_service_config(client, "{}", NULL) == 0);
    echo(client, "by the other config");
    CHECK(valkyrie_client_free(client) == 0);
    CHECK(valkyrie_client_set_service_config(client, "{}", NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
}

/* Connects with these options, which are wrong; the code, and the error's sentence in `said`. */
static valkyrie_code refused(const char *endpoint, const valkyrie_client_options *options, char said[256]) {
    valkyrie_client *client = NULL;
    valkyrie_error *error = NULL;
    valkyrie_code code = valkyrie_client_connect(endpoint, options, &client, &error);
    CHECK(code != 0 && client == NULL);
    snprintf(said, 256, "%s", valkyrie_error_message(error));
    valkyrie_error_free(error);
    return code;
}

static void options_of_tls(const char *endpoint) {
    char said[256];
    const valkyrie_client_options none = VALKYRIE_CLIENT_OPTIONS_INIT;
    valkyrie_client_options options = none;
    options.min_security = 4;
    CHECK(refused(endpoint, &options, said) == VALKYRIE_CODE_INVALID_ARGUMENT && strstr(said, "min_security 4"));
    options = none;
    options.system_roots = 2;
    CHECK(refused(endpoint, &options, said) == VALKYRIE_CODE_INVALID_ARGUMENT && strstr(said, "system_roots is 2"));
    options = none;
    options.identity_key = "file:key.pem";
    CHECK(refused(endpoint, &options, said) == VALKYRIE_CODE_INVALID_ARGUMENT && strstr(said, "identity_certificates"));
    options = none;
    options.reserved_too = 1;
    CHECK(refused(endpoint, &options, said) == VALKYRIE_CODE_INVALID_ARGUMENT && strstr(said, "reserved_too"));
    /* What is not encrypted is not enough for who asks for more, or says whom to trust. */
    options = none;
    options.min_security = VALKYRIE_SECURITY_TLS;
    CHECK(refused(endpoint, &options, said) == VALKYRIE_CODE_FAILED_PRECONDITION && strstr(said, "not encrypted"));
    options = none;
    options.trusted_certificates = "file:/absent/ca.pem";
    CHECK(refused(endpoint, &options, said) == VALKYRIE_CODE_FAILED_PRECONDITION);
    CHECK(refused("tls://localhost:1", &options, said) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(strstr(said, "/absent/ca.pem") != NULL);
    CHECK(refused("tls://localhost:1", &none, said) == VALKYRIE_CODE_INVALID_ARGUMENT && strstr(said, "trust"));
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    CHECK(valkyrie_abi_version() == VALKYRIE_ABI_VERSION);
    CHECK(strstr(valkyrie_version(), "core") != NULL);
    CHECK(strcmp(valkyrie_code_name(4), "DEADLINE_EXCEEDED") == 0);
    CHECK(strcmp(valkyrie_code_name(4242), "UNKNOWN") == 0);
    nulls(argv[1]);
    valkyrie_client *client = connect_to(argv[1]);
    lengths(client);
    structures_of_other_versions(argv[1], client);
    options_of_tls(argv[1]);
    connectivity(argv[1]);
    breakers(argv[1]);
    breakers_told(argv[1]);
    echo(client, "still here");
    CHECK(valkyrie_client_free(client) == 0);
    CHECK(valkyrie_in_flight() == 0 && valkyrie_alive() == 0);
    valkyrie_shutdown();
    puts("ok");
    return 0;
}

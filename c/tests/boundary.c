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
    options.known.reserved = 1;
    CHECK(call_with(client, &options.known, said) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(strstr(said, "reserved of the call options is 1") != NULL);
    options.known.reserved = 0;
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
    /* A program of the first version, whose structure ended behind trusted_certificates. */
    wanted.known.min_security = 99;
    wanted.known.struct_size = offsetof(valkyrie_client_options, revocation_lists);
    CHECK(valkyrie_client_connect(endpoint, &wanted.known, &other, NULL) == 0);
    valkyrie_client_free(other);
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
    echo(client, "still here");
    CHECK(valkyrie_client_free(client) == 0);
    CHECK(valkyrie_in_flight() == 0 && valkyrie_alive() == 0);
    valkyrie_shutdown();
    puts("ok");
    return 0;
}

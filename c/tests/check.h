/* What the programs of this folder share. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <valkyrie.h>

#define CHECK(condition)                                                                      \
    do {                                                                                      \
        if (!(condition)) {                                                                   \
            fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition);     \
            exit(1);                                                                          \
        }                                                                                     \
    } while (0)

static inline valkyrie_bytes text(const char *string) {
    valkyrie_bytes bytes = {(const uint8_t *)string, strlen(string)};
    return bytes;
}

static inline bool same(valkyrie_bytes bytes, const char *string) {
    return bytes.len == strlen(string) && (bytes.len == 0 || memcmp(bytes.data, string, bytes.len) == 0);
}

static inline valkyrie_client *connect_to(const char *endpoint) {
    valkyrie_client_options options = VALKYRIE_CLIENT_OPTIONS_INIT;
    valkyrie_client *client = NULL;
    options.timeout_ms = 60000;
    CHECK(valkyrie_client_connect(endpoint, &options, &client, NULL) == 0);
    return client;
}

/* One blocking call whose answer must be its message. */
static inline void echo(const valkyrie_client *client, const char *words) {
    valkyrie_message *reply = NULL;
    CHECK(valkyrie_client_request(client, text(words), &reply, NULL) == 0);
    CHECK(same(valkyrie_message_bytes(reply), words));
    CHECK(valkyrie_message_free(reply) == 0);
}

static inline valkyrie_operation calling(const valkyrie_client *client, const char *method, const char *words) {
    valkyrie_operation operation = VALKYRIE_OPERATION_INIT(VALKYRIE_OPERATION_CALL);
    operation.client = client;
    operation.target = method;
    operation.message = text(words);
    return operation;
}

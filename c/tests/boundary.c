/* What the conformance cases do not see: NULLs, sizes, callbacks on the host's poller, frees in any order.
 * Usage: boundary ENDPOINT. Valgrind runs it too. */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <valkyrie.h>

#define CHECK(condition)                                                    \
    do {                                                                    \
        if (!(condition)) {                                                 \
            fprintf(stderr, "line %d: %s does not hold\n", __LINE__, #condition); \
            exit(1);                                                        \
        }                                                                   \
    } while (0)

typedef struct {
    int ok, failed;
    valkyrie_code last;
} tally;

static void count(valkyrie_code code, valkyrie_response *response, valkyrie_error *error, void *user_data) {
    tally *seen = (tally *)user_data;
    CHECK((code == 0) == (response != NULL));
    CHECK((code == 0) == (error == NULL));
    if (code == 0) seen->ok++;
    else seen->failed++;
    seen->last = code;
    valkyrie_response_free(response);
    valkyrie_error_free(error);
}

static valkyrie_bytes text(const char *string) {
    valkyrie_bytes bytes = {(const uint8_t *)string, strlen(string)};
    return bytes;
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    CHECK(valkyrie_abi_version() == VALKYRIE_ABI_VERSION);
    CHECK(strstr(valkyrie_version(), "core") != NULL);
    CHECK(strcmp(valkyrie_code_name(4), "DEADLINE_EXCEEDED") == 0);
    CHECK(strcmp(valkyrie_code_name(4242), "UNKNOWN") == 0);

    /* NULLs are errors or nothing, never a crash. */
    valkyrie_error *error = NULL;
    valkyrie_client *client = NULL;
    CHECK(valkyrie_client_connect(NULL, NULL, &client, &error) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(strstr(valkyrie_error_message(error), "endpoint") != NULL);
    valkyrie_error_free(error);
    CHECK(valkyrie_client_connect(argv[1], NULL, NULL, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_client_close(NULL, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_call_send(NULL, text("x"), NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_queue_fd(NULL) == -1);
    CHECK(valkyrie_queue_dispatch(NULL, 0) == 0);
    CHECK(valkyrie_response_message(NULL).len == 0);
    CHECK(valkyrie_metadata_len(NULL) == 0);
    CHECK(!valkyrie_metadata_at(NULL, 0, NULL, NULL));
    valkyrie_client_free(NULL);
    valkyrie_call_free(NULL);
    valkyrie_queue_free(NULL);
    valkyrie_response_free(NULL);
    valkyrie_message_free(NULL);
    valkyrie_error_free(NULL);
    valkyrie_call_cancel(NULL);
    valkyrie_operation_cancel(UINT64_MAX);

    valkyrie_client_options options = VALKYRIE_CLIENT_OPTIONS_INIT;
    options.timeout_ms = 60000;
    CHECK(valkyrie_client_connect(argv[1], &options, &client, NULL) == 0);
    valkyrie_response *response = NULL;
    valkyrie_bytes lie = {NULL, 5};
    CHECK(valkyrie_client_request(client, lie, &response, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    valkyrie_bytes huge = {(const uint8_t *)"x", SIZE_MAX};
    CHECK(valkyrie_client_request(client, huge, &response, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_client_call(client, "/echo\xff", text("x"), NULL, &response, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    valkyrie_call_options small = VALKYRIE_CALL_OPTIONS_INIT;
    small.struct_size = 4;
    CHECK(valkyrie_client_call(client, "/echo", text("x"), &small, &response, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(response == NULL);

    /* Callbacks on the host's own poller. */
    valkyrie_queue *queue = NULL;
    CHECK(valkyrie_queue_new(&queue, NULL) == 0);
    tally seen = {0, 0, 0};
    for (int i = 0; i < 100; i++)
        CHECK(valkyrie_client_call_start(client, queue, "/echo", text("x"), NULL, NULL, NULL, count, &seen) == 0);
    while (seen.ok < 100) {
        struct pollfd waiting = {valkyrie_queue_fd(queue), POLLIN, 0};
        CHECK(poll(&waiting, 1, 60000) == 1);
        CHECK(valkyrie_queue_dispatch(queue, 0) > 0);
    }
    CHECK(seen.failed == 0);

    /* A cancel is heard once. */
    uint64_t operation = 0;
    CHECK(valkyrie_client_call_start(client, queue, "/test/hang", text("c"), NULL, &operation, NULL, count, &seen) == 0);
    valkyrie_operation_cancel(operation);
    valkyrie_operation_cancel(operation);
    CHECK(valkyrie_queue_dispatch(queue, 60000) == 1);
    CHECK(seen.failed == 1 && seen.last == VALKYRIE_CODE_CANCELLED);

    /* Freeing the queue completes what waits on it. */
    CHECK(valkyrie_client_call_start(client, queue, "/test/hang", text("c"), NULL, NULL, NULL, count, &seen) == 0);
    valkyrie_queue_free(queue);
    CHECK(seen.failed == 2 && seen.last == VALKYRIE_CODE_CANCELLED);

    /* A stream that outlives its client is an error, not a crash. */
    valkyrie_call *call = NULL;
    CHECK(valkyrie_client_open(client, "/echo", NULL, &call, NULL) == 0);
    CHECK(valkyrie_call_send(call, text("x"), NULL) == 0);
    CHECK(valkyrie_call_half_close(call, NULL) == 0);
    CHECK(valkyrie_client_close(client, NULL) == 0);
    CHECK(valkyrie_client_request(client, text("late"), &response, &error) == VALKYRIE_CODE_CANCELLED);
    CHECK(valkyrie_error_reason(error).len == strlen("CLIENT_CLOSED"));
    valkyrie_error_free(error);
    valkyrie_client_free(client);
    valkyrie_message *message = NULL;
    while (valkyrie_call_recv(call, &message, NULL) == 0 && message != NULL) valkyrie_message_free(message);
    valkyrie_call_free(call);
    CHECK(valkyrie_in_flight() == 0);
    valkyrie_shutdown();
    puts("ok");
    return 0;
}

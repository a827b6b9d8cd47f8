/* Pointers that were freed, are of another type or were never handed out: an error each, and the program lives.
 * Usage: misuse ENDPOINT. */
#include "check.h"

static void ignore(const valkyrie_completion *completion, void *user_data) {
    (void)user_data;
    valkyrie_client_free(completion->client);
    valkyrie_message_free(completion->message);
    valkyrie_error_free(completion->error);
}

/* No function may believe this pointer. */
static void is_no_object(const void *pointer, const valkyrie_client *alive) {
    valkyrie_error *error = NULL;
    valkyrie_message *reply = NULL, *message = NULL;
    valkyrie_call *call = NULL;
    valkyrie_queue *queue = NULL;
    const valkyrie_client *client = (const valkyrie_client *)pointer;
    const valkyrie_call *stream = (const valkyrie_call *)pointer;
    const valkyrie_queue *completions = (const valkyrie_queue *)pointer;
    valkyrie_operation operation = calling(client, "/echo", "x");

    CHECK(valkyrie_client_request(client, text("x"), &reply, &error) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(strstr(valkyrie_error_message(error), "client is not alive") != NULL);
    valkyrie_error_free(error);
    CHECK(valkyrie_client_close(client, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_client_open(client, "/echo", NULL, &call, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_client_set_service_config(client, "{}", NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_client_breakers(client, &message, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_client_metrics(client, &message, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_client_isolate(client, "tcp://127.0.0.1:1", NULL, true, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_client_connectivity(client) == VALKYRIE_CONNECTIVITY_SHUTDOWN);
    CHECK(valkyrie_call_send(stream, text("x"), NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_call_half_close(stream, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_call_recv(stream, &message, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_call_metadata(stream) == NULL && valkyrie_call_trailers(stream) == NULL);
    valkyrie_call_cancel(stream);
    CHECK(valkyrie_queue_fd(completions) == -1);
    CHECK(valkyrie_queue_dispatch(completions, VALKYRIE_NO_TIMEOUT) == 0);
    CHECK(valkyrie_operation_start(completions, &operation, NULL, NULL, ignore, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_queue_new(&queue, NULL) == 0);
    CHECK(valkyrie_operation_start(queue, &operation, NULL, NULL, ignore, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    operation.client = alive;
    for (operation.kind = VALKYRIE_OPERATION_SEND; operation.kind <= VALKYRIE_OPERATION_RECV; operation.kind++) {
        operation.call = stream;
        CHECK(valkyrie_operation_start(queue, &operation, NULL, NULL, ignore, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    }
    operation.kind = VALKYRIE_OPERATION_BREAKERS + 1;
    CHECK(valkyrie_operation_start(queue, &operation, NULL, NULL, ignore, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_queue_free(queue) == 0);
    CHECK(valkyrie_message_bytes((const valkyrie_message *)pointer).len == 0);
    CHECK(valkyrie_message_metadata((const valkyrie_message *)pointer) == NULL);
    CHECK(valkyrie_metadata_len((const valkyrie_metadata *)pointer) == 0);
    CHECK(valkyrie_error_code((const valkyrie_error *)pointer) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(strcmp(valkyrie_error_message((const valkyrie_error *)pointer), "") == 0);
    CHECK(valkyrie_error_trailers((const valkyrie_error *)pointer) == NULL);
    CHECK(valkyrie_client_free((valkyrie_client *)pointer) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_call_free((valkyrie_call *)pointer) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_queue_free((valkyrie_queue *)pointer) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_message_free((valkyrie_message *)pointer) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_error_free((valkyrie_error *)pointer) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(reply == NULL && message == NULL && call == NULL);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    valkyrie_client *client = connect_to(argv[1]), *freed = connect_to(argv[1]);
    valkyrie_call *call = NULL;
    valkyrie_queue *queue = NULL;
    valkyrie_message *message = NULL;
    valkyrie_error *error = NULL;
    CHECK(valkyrie_client_open(client, "/echo", NULL, &call, NULL) == 0);
    CHECK(valkyrie_queue_new(&queue, NULL) == 0);
    CHECK(valkyrie_client_request(client, text("x"), &message, NULL) == 0);
    CHECK(valkyrie_client_call(client, "/no/such", text("x"), NULL, &message, &error) == VALKYRIE_CODE_UNIMPLEMENTED);

    /* An object of another type, and a part of one. */
    CHECK(valkyrie_client_free((valkyrie_client *)message) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_message_free((valkyrie_message *)client) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_call_send((valkyrie_call *)queue, text("x"), NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_error_free((valkyrie_error *)call) == VALKYRIE_CODE_INVALID_ARGUMENT);
    const valkyrie_metadata *trailers = valkyrie_message_trailers(message);
    CHECK(trailers != NULL && trailers != valkyrie_message_metadata(message));
    CHECK(valkyrie_message_free((valkyrie_message *)trailers) == VALKYRIE_CODE_INVALID_ARGUMENT);
    CHECK(valkyrie_metadata_len((const valkyrie_metadata *)message) == 0);

    /* Closed twice, then freed twice. */
    CHECK(valkyrie_client_close(freed, NULL) == 0 && valkyrie_client_close(freed, NULL) == 0);
    CHECK(valkyrie_client_free(freed) == 0 && valkyrie_call_free(call) == 0 && valkyrie_queue_free(queue) == 0);
    CHECK(valkyrie_message_free(message) == 0 && valkyrie_error_free(error) == 0);
    /* Others live in their places now. */
    valkyrie_client *next = connect_to(argv[1]);
    valkyrie_message *reply = NULL;
    CHECK(valkyrie_client_request(next, text("x"), &reply, NULL) == 0);

    is_no_object(freed, client);
    is_no_object(call, client);
    is_no_object(queue, client);
    is_no_object(message, client);
    is_no_object(error, client);
    is_no_object(trailers, client);
    /* Never handed out: of the stack, of the heap, numbers. */
    char *heap = (char *)malloc(64);
    is_no_object(&argc, client);
    is_no_object(heap, client);
    is_no_object((const void *)1, client);
    is_no_object((const void *)UINTPTR_MAX, client);
    free(heap);

    CHECK(same(valkyrie_message_bytes(reply), "x"));
    CHECK(valkyrie_message_free(reply) == 0);
    echo(client, "still here");
    echo(next, "and here");
    CHECK(valkyrie_client_free(next) == 0 && valkyrie_client_free(client) == 0);
    CHECK(valkyrie_in_flight() == 0 && valkyrie_alive() == 0);
    valkyrie_shutdown();
    puts("ok");
    return 0;
}

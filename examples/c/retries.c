/* A call with a deadline that is retried, behind a circuit breaker. Usage: retries [endpoint,endpoint] */
#include <stdio.h>
#include <valkyrie.h>

int main(int argc, char **argv) {
    valkyrie_client_options options = VALKYRIE_CLIENT_OPTIONS_INIT;
    valkyrie_call_options twice = VALKYRIE_CALL_OPTIONS_INIT;
    valkyrie_client *client = NULL;
    valkyrie_message *reply = NULL;
    valkyrie_error *error = NULL;
    valkyrie_bytes hello = {(const uint8_t *)"Hello, World!", 13};
    options.service_config =
        "{\"methods\": [{\"names\": [\"*\"], \"retry\": {\"max_attempts\": 4}, \"breaker\": {\"open_ms\": 10000}}]}";
    twice.idempotent = 1;
    twice.timeout_ms = 2000;
    valkyrie_code code = valkyrie_client_connect(argc > 1 ? argv[1] : "tcp://localhost:8080", &options, &client, &error);
    if (code == 0) code = valkyrie_client_call(client, "/echo", hello, &twice, &reply, &error);
    valkyrie_bytes answer = code == 0 ? valkyrie_message_bytes(reply) : valkyrie_error_timeline(error);
    printf("%s: %s\n%.*s\n", valkyrie_code_name(code), valkyrie_error_message(error), (int)answer.len,
           (const char *)answer.data);
    valkyrie_error_free(error);
    valkyrie_message_free(reply);
    valkyrie_client_free(client);
    return (int)code;
}

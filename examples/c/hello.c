/* Hello: one call. Usage: hello [endpoint] */
#include <stdio.h>
#include <valkyrie.h>

int main(int argc, char **argv) {
    valkyrie_client *client = NULL;
    valkyrie_response *response = NULL;
    valkyrie_error *error = NULL;
    valkyrie_bytes hello = {(const uint8_t *)"Hello, World!", 13}, answer;
    if (valkyrie_client_connect(argc > 1 ? argv[1] : "tcp://localhost:8080", NULL, &client, &error) == 0 &&
        valkyrie_client_request(client, hello, &response, &error) == 0) {
        answer = valkyrie_response_message(response);
        printf("%.*s\n", (int)answer.len, (const char *)answer.data);
    } else {
        fprintf(stderr, "%s\n", valkyrie_error_message(error));
    }
    int code = (int)valkyrie_error_code(error);
    valkyrie_error_free(error);
    valkyrie_response_free(response);
    valkyrie_client_free(client);
    return code;
}

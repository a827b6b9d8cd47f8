/* Hello: one call. Usage: hello [endpoint] */
#include <stdio.h>
#include <valkyrie.h>

int main(int argc, char **argv) {
    valkyrie_client *client = NULL;
    valkyrie_message *response = NULL;
    valkyrie_bytes hello = {(const uint8_t *)"Hello, World!", 13};
    valkyrie_code code = valkyrie_client_connect(argc > 1 ? argv[1] : "tcp://localhost:8080", NULL, &client, NULL);
    if (code == 0) code = valkyrie_client_request(client, hello, &response, NULL);
    valkyrie_bytes answer = valkyrie_message_bytes(response);
    printf("%s: %.*s\n", valkyrie_code_name(code), (int)answer.len, (const char *)answer.data);
    valkyrie_message_free(response);
    valkyrie_client_free(client);
    return (int)code;
}

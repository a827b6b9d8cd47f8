/* Stream: both ways. Usage: stream [endpoint] */
#include <stdio.h>
#include <string.h>
#include <valkyrie.h>

int main(int argc, char **argv) {
    const char *words[] = {"one", "two", "three"};
    valkyrie_client *client = NULL;
    valkyrie_call *call = NULL;
    valkyrie_message *message = NULL;
    valkyrie_code code = valkyrie_client_connect(argc > 1 ? argv[1] : "tcp://localhost:8080", NULL, &client, NULL);
    if (code == 0) code = valkyrie_client_open(client, "/echo", NULL, &call, NULL);
    for (size_t i = 0; code == 0 && i < 3; i++) {
        valkyrie_bytes word = {(const uint8_t *)words[i], strlen(words[i])};
        code = valkyrie_call_send(call, word, NULL);
    }
    if (code == 0) code = valkyrie_call_half_close(call, NULL);
    while (code == 0 && (code = valkyrie_call_recv(call, &message, NULL)) == 0 && message != NULL) {
        valkyrie_bytes bytes = valkyrie_message_bytes(message);
        printf("%.*s\n", (int)bytes.len, (const char *)bytes.data);
        valkyrie_message_free(message);
    }
    valkyrie_call_free(call);
    valkyrie_client_free(client);
    return (int)code;
}

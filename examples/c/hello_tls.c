/* Hello over TLS. Usage: hello_tls [endpoint file:authorities.pem] */
#include <stdio.h>
#include <valkyrie.h>

int main(int argc, char **argv) {
    valkyrie_client *client = NULL;
    valkyrie_message *response = NULL;
    valkyrie_bytes hello = {(const uint8_t *)"Hello, World!", 13};
    valkyrie_client_options options = VALKYRIE_CLIENT_OPTIONS_INIT;
    options.trusted_certificates = argc > 2 ? argv[2] : "file:certificates/ca.pem";
    valkyrie_code code = valkyrie_client_connect(argc > 1 ? argv[1] : "tls://localhost:8443", &options, &client, NULL);
    if (code == 0) code = valkyrie_client_request(client, hello, &response, NULL);
    valkyrie_bytes answer = valkyrie_message_bytes(response);
    printf("%s: %.*s\n", valkyrie_code_name(code), (int)answer.len, (const char *)answer.data);
    valkyrie_message_free(response);
    valkyrie_client_free(client);
    return (int)code;
}

package dev.valkyrie.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.valkyrie.CallOptions;
import dev.valkyrie.Client;
import dev.valkyrie.Code;
import dev.valkyrie.ConnectOptions;
import dev.valkyrie.Connectivity;
import dev.valkyrie.IdempotencyKey;
import dev.valkyrie.LogLevel;
import dev.valkyrie.Metadata;
import dev.valkyrie.Priority;
import dev.valkyrie.Response;
import dev.valkyrie.StatusException;
import dev.valkyrie.Stream;
import dev.valkyrie.Valkyrie;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;

/** The package as Java sees it. */
class JavaTest {
    private static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    private static String text(byte[] bytes) {
        return new String(bytes, StandardCharsets.UTF_8);
    }

    @Test
    void callsBlockOrGiveFutures() throws Exception {
        ConnectOptions options = new ConnectOptions().timeout(Duration.ofSeconds(10)).connectTimeout(Duration.ofSeconds(5));
        try (Client client = Client.connectBlocking(Server.getTcp(), options)) {
            assertEquals("blocking", text(client.callBlocking("/echo", bytes("blocking"))));
            assertEquals("future", text(client.callAsync("/echo", bytes("future")).get(30, TimeUnit.SECONDS)));
            CallOptions call = new CallOptions()
                    .timeout(Duration.ofSeconds(2))
                    .metadata("k", "v")
                    .priority(Priority.BULK)
                    .idempotent(true)
                    .idempotencyKey(IdempotencyKey.of("java"));
            Response response = client.callWithResponseBlocking("/test/metadata", bytes(""), call);
            assertEquals("v", response.getMetadata().get("k"));
            assertEquals("v", client.callWithResponseAsync("/test/metadata", bytes(""), call).get().getTrailers().get("t-k"));
            assertEquals(Connectivity.READY, client.getConnectivity());
            assertEquals(4, client.breakers().size() + 2);
            StatusException status =
                    assertThrows(StatusException.class, () -> client.callBlocking("/no/such/method", bytes("")));
            assertEquals(Code.UNIMPLEMENTED, status.getCode());
            assertEquals(-1, status.getPushbackMillis());
            CompletableFuture<byte[]> failed = client.callAsync("/no/such/method", bytes(""));
            assertTrue(assertThrows(ExecutionException.class, failed::get).getCause() instanceof StatusException);
        }
    }

    @Test
    void aTimeLimitOfAFutureCancelsItsCall() throws Exception {
        try (Client client = Client.connectAsync(Server.getTcp()).get()) {
            CallOptions forever = new CallOptions().timeout(Duration.ofDays(1));
            byte[] token = bytes("java-" + System.nanoTime());
            CompletableFuture<byte[]> call = client.callAsync("/test/hang", token, forever);
            call.orTimeout(200, TimeUnit.MILLISECONDS);
            client.callBlocking("/test/hang_stats", token, new CallOptions().metadata("until", "dropped"));
            assertTrue(call.isCompletedExceptionally());
        }
    }

    @Test
    void streamsGoBothWays() throws Exception {
        try (Client client = Client.connectBlocking(Server.getTcp());
                Stream stream = client.open("/echo", new CallOptions().metadata(Metadata.of("k", "v")))) {
            for (int i = 0; i < 100; i++) {
                stream.sendBlocking(bytes("message " + i));
                assertEquals("message " + i, text(stream.recvBlocking()));
            }
            stream.halfCloseBlocking();
            assertNull(stream.recvAsync().get());
        }
    }

    @Test
    void aTokenMayBeAFuture() throws Exception {
        CompletableFuture<String> token = CompletableFuture.completedFuture("one of nobody's");
        try (Client client = Client.connectBlocking("echo://core", new ConnectOptions().tokens(() -> token))) {
            assertEquals("x", text(client.callBlocking("/echo", bytes("x"))));
        }
    }

    @Test
    void theLibraryHasAVersionAndALogger() {
        assertTrue(Valkyrie.getVersion().matches("0\\.1\\.0 \\(core [0-9a-f]+\\)"));
        Valkyrie.setLogger(record -> {}, LogLevel.ERROR);
        Valkyrie.setLogger(null);
    }
}

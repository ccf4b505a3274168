// Runs Debezium's own PostgreSQL connector and prints what it emits, one JSON line per record:
//
//   {"topic":"orders.public.t","key":{"id":1},"value":{…},"headers":{"name":value,…}}
//
// Keys, values and header values are printed exactly as Connect's JsonConverter (schemas.enable=false) wrote them.
// Arguments are properties of the engine, `name=value`. Ends, in order, when its standard input ends.
//
//   java -cp "$(tests/kit/install --dir)/debezium/libs/*" Oracle.java database.hostname=127.0.0.1 …

import io.debezium.engine.ChangeEvent;
import io.debezium.engine.DebeziumEngine;
import io.debezium.engine.Header;
import io.debezium.engine.format.Json;
import io.debezium.engine.format.KeyValueHeaderChangeEventFormat;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.Properties;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;

public final class Oracle {
    public static void main(String[] args) throws Exception {
        Properties properties = new Properties();
        properties.setProperty("name", "oracle");
        properties.setProperty("connector.class", "io.debezium.connector.postgresql.PostgresConnector");
        properties.setProperty("offset.storage", "org.apache.kafka.connect.storage.MemoryOffsetBackingStore");
        properties.setProperty("plugin.name", "pgoutput");
        properties.setProperty("converter.schemas.enable", "false");
        for (String arg : args) {
            int equals = arg.indexOf('=');
            properties.setProperty(arg.substring(0, equals), arg.substring(equals + 1));
        }
        PrintStream out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        DebeziumEngine<ChangeEvent<String, String>> engine = DebeziumEngine
                .create(KeyValueHeaderChangeEventFormat.of(Json.class, Json.class, Json.class))
                .using(properties)
                .using((success, message, error) -> {
                    if (!success) {
                        System.err.println("oracle: " + message);
                        if (error != null) {
                            error.printStackTrace();
                        }
                        System.exit(1);
                    }
                })
                .notifying(record -> out.println(line(record)))
                .build();
        ExecutorService executor = Executors.newSingleThreadExecutor();
        executor.execute(engine);
        while (System.in.read() >= 0) {
            // Until the one who started us has seen enough.
        }
        engine.close();
        executor.shutdown();
        executor.awaitTermination(30, TimeUnit.SECONDS);
    }

    private static String line(ChangeEvent<String, String> record) {
        StringBuilder line = new StringBuilder();
        line.append("{\"topic\":\"").append(record.destination()).append('"');
        line.append(",\"key\":").append(record.key());
        line.append(",\"value\":").append(record.value());
        line.append(",\"headers\":{");
        String comma = "";
        for (Header<Object> header : record.<Object>headers()) {
            line.append(comma).append('"').append(header.getKey()).append("\":").append(header.getValue());
            comma = ",";
        }
        return line.append("}}").toString();
    }
}

import jakarta.transaction.TransactionManager;
import java.sql.Connection;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.locks.LockSupport;

/**
 * Buys: work in two databases, committed in both or in none by a transaction manager. What an earlier process of the same name has left behind
 * is ended before.
 *
 * <pre>
 * java -cp 'libs/*' Shop manager=narayana|atomikos name=NAME log=FOLDER orders=JDBC-URL order=SQL inventory=JDBC-URL reserve=SQL
 *     [first=1] [purchases=0] [threads=1] [rate=0 (a second; 0: as many as go)] [die=prepare:N|commit:N]
 * </pre>
 */
public final class Shop {
    private final Manager manager;
    private final List<Database> databases;
    private final long first;
    private final long purchases;
    private final double rate;
    private final long start;
    private final AtomicLong begun = new AtomicLong();
    private final AtomicLong failed = new AtomicLong();

    private Shop(Map<String, String> told) throws Exception {
        first = Long.parseLong(told.getOrDefault("first", "1"));
        purchases = Long.parseLong(told.getOrDefault("purchases", "0"));
        rate = Double.parseDouble(told.getOrDefault("rate", "0"));
        Death death = told.containsKey("die") ? new Death(told.get("die")) : null;
        databases = List.of(
            new Database("orders", told.get("orders"), told.get("order"), death),
            new Database("inventory", told.get("inventory"), told.get("reserve"), death));
        String name = told.get("name");
        String log = told.get("log");
        manager = switch (told.get("manager")) {
            case "narayana" -> new Narayana(name, log, databases);
            case "atomikos" -> new Atomikos(name, log, databases, threads(told));
            default -> throw new IllegalArgumentException("manager=" + told.get("manager") + ": narayana or atomikos");
        };
        while (databases.get(0).has(name) || databases.get(1).has(name)) {
            manager.recover();
        }
        start = System.nanoTime();
    }

    private static int threads(Map<String, String> told) {
        return Integer.parseInt(told.getOrDefault("threads", "1"));
    }

    public static void main(String[] arguments) throws Exception {
        Map<String, String> told = new HashMap<>();
        for (String argument : arguments) {
            String[] pair = argument.split("=", 2);
            told.put(pair[0], pair[1]);
        }
        Shop shop = new Shop(told);
        System.out.println("open");
        List<Thread> buyers = new ArrayList<>();
        for (int buyer = 0; buyer < threads(told); buyer++) {
            Thread thread = new Thread(shop::shop);
            thread.start();
            buyers.add(thread);
        }
        for (Thread buyer : buyers) {
            buyer.join();
        }
        System.out.println("bought=" + (shop.purchases - shop.failed.get()) + " failed=" + shop.failed.get());
        // Managers keep threads.
        System.exit(0);
    }

    /** One of those who buy. */
    private void shop() {
        for (long turn = begun.getAndIncrement(); turn < purchases; turn = begun.getAndIncrement()) {
            if (rate > 0) {
                long due = start + (long) (turn / rate * TimeUnit.SECONDS.toNanos(1));
                LockSupport.parkNanos(due - System.nanoTime());
            }
            try {
                buy(first + turn);
            } catch (Exception failure) {
                failed.incrementAndGet();
                System.err.println("purchase " + (first + turn) + " failed");
                failure.printStackTrace();
            }
        }
    }

    private void buy(long id) throws Exception {
        TransactionManager transactions = manager.transactions();
        transactions.begin();
        try {
            for (Database database : databases) {
                try (Connection connection = manager.connect(database); Statement statement = connection.createStatement()) {
                    statement.execute(database.work.replace("{id}", Long.toString(id)));
                }
            }
        } catch (Exception failure) {
            transactions.rollback();
            throw failure;
        }
        transactions.commit();
    }
}

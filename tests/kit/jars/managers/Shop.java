import jakarta.transaction.TransactionManager;
import java.sql.Connection;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.locks.LockSupport;
import javax.transaction.xa.XAException;

/**
 * Buys: work in two databases, committed in both or in none by a transaction manager. What an earlier process of the same name has left behind
 * is ended before.
 *
 * <pre>
 * java -cp 'libs/*' Shop manager=narayana|atomikos name=NAME log=FOLDER orders=JDBC-URL order=SQL inventory=JDBC-URL reserve=SQL
 *     [first=1] [purchases=0] [threads=1] [rate=0 (a second; 0: as many as go)] [gives_up=0 (one in so many; 0: none)]
 *     [look=0 (seconds between two looks for what was left behind meanwhile, and two tallies; 0: none)] [die=prepare:N|commit:N]
 * </pre>
 */
public final class Shop {
    /** Behind a failure, before the next purchase of those who go on. */
    private static final long AGAIN = TimeUnit.MILLISECONDS.toNanos(500);

    private final Manager manager;
    private final List<Database> databases;
    private final long first;
    private final long purchases;
    private final double rate;
    private final long givesUp;
    private final double look;
    private final long start;
    private final AtomicLong begun = new AtomicLong();
    private final Tally tally = new Tally();

    private Shop(Map<String, String> told) throws Exception {
        first = Long.parseLong(told.getOrDefault("first", "1"));
        purchases = Long.parseLong(told.getOrDefault("purchases", "0"));
        rate = Double.parseDouble(told.getOrDefault("rate", "0"));
        givesUp = Long.parseLong(told.getOrDefault("gives_up", "0"));
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
        look = Double.parseDouble(told.getOrDefault("look", "0"));
        while (isLeft(name)) {
            if (look > 0) {
                lookBehind();
            } else {
                manager.recover();
            }
        }
        manager.opens();
        start = System.nanoTime();
    }

    /** Whether something of an earlier process is prepared, or may be: one that goes on after failures waits for a database that is away. */
    private boolean isLeft(String name) throws Exception {
        try {
            return databases.get(0).has(name) || databases.get(1).has(name);
        } catch (SQLException | XAException failure) {
            if (look == 0) {
                throw failure;
            }
            failure.printStackTrace();
            return true;
        }
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
        if (shop.look > 0) {
            long pause = (long) (shop.look * TimeUnit.SECONDS.toNanos(1));
            every(pause, () -> System.out.println(shop.tally));
            every(pause, shop::lookBehind);
        }
        List<Thread> buyers = new ArrayList<>();
        for (int buyer = 0; buyer < threads(told); buyer++) {
            Thread thread = new Thread(shop::shop);
            thread.start();
            buyers.add(thread);
        }
        for (Thread buyer : buyers) {
            buyer.join();
        }
        System.out.println("bought=" + shop.tally.bought + " failed=" + shop.tally.failed);
        // Managers keep threads.
        System.exit(0);
    }

    /** In a thread of its own, until the process ends. */
    private static void every(long nanos, Runnable what) {
        new Thread(() -> {
            while (true) {
                LockSupport.parkNanos(nanos);
                what.run();
            }
        }).start();
    }

    private void lookBehind() {
        try {
            manager.recover();
        } catch (Exception failure) {
            // A database may be away: the next look may find it.
            failure.printStackTrace();
        }
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
                tally.failed.incrementAndGet();
                manager.failed();
                System.err.println("purchase " + (first + turn) + " failed");
                failure.printStackTrace();
                if (look > 0) {
                    // A database may be away.
                    LockSupport.parkNanos(AGAIN);
                }
            }
        }
    }

    private void buy(long id) throws Exception {
        long began = System.nanoTime();
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
        if (givesUp > 0 && id % givesUp == 0) {
            transactions.rollback();
            tally.gaveUp.incrementAndGet();
            return;
        }
        transactions.commit();
        tally.bought(System.nanoTime() - began);
    }
}

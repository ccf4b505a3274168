import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicLongArray;

/** What was bought so far, and how long that took. */
final class Tally {
    final AtomicLong bought = new AtomicLong();
    final AtomicLong gaveUp = new AtomicLong();
    final AtomicLong failed = new AtomicLong();
    /** At {@code n}: purchases of less than 2^n microseconds, and of half of that at least. */
    private final AtomicLongArray took = new AtomicLongArray(Long.SIZE);

    void bought(long nanos) {
        bought.incrementAndGet();
        took.incrementAndGet(Long.SIZE - Long.numberOfLeadingZeros(TimeUnit.NANOSECONDS.toMicros(nanos)));
    }

    /** As a line: {@code tally bought=120 gave_up=6 failed=2 took=13:40,14:80}. */
    @Override
    public String toString() {
        StringBuilder line = new StringBuilder("tally bought=" + bought + " gave_up=" + gaveUp + " failed=" + failed + " took=");
        String separator = "";
        for (int bits = 0; bits < took.length(); bits++) {
            if (took.get(bits) > 0) {
                line.append(separator).append(bits).append(':').append(took.get(bits));
                separator = ",";
            }
        }
        return line.toString();
    }
}

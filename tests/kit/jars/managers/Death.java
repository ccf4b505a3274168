import java.util.concurrent.atomic.AtomicInteger;
import javax.transaction.xa.XAException;
import javax.transaction.xa.XAResource;
import javax.transaction.xa.Xid;

/** The end of this process at a place, without a word to anybody: {@code prepare:20} is behind the twentieth, {@code commit:20} before it. */
final class Death {
    private final String call;
    private final int at;
    private final AtomicInteger calls = new AtomicInteger();

    Death(String place) {
        String[] parts = place.split(":");
        call = parts[0];
        at = Integer.parseInt(parts[1]);
    }

    XAResource in(XAResource resource) {
        return new Watched(resource);
    }

    private void reached(String call) {
        if (call.equals(this.call) && calls.incrementAndGet() == at) {
            Runtime.getRuntime().halt(137);
        }
    }

    // No proxy of java.lang.reflect: Narayana would write it to its log, since those can be.
    private final class Watched implements XAResource {
        private final XAResource resource;

        Watched(XAResource resource) {
            this.resource = resource;
        }

        @Override
        public int prepare(Xid xid) throws XAException {
            int vote = resource.prepare(xid);
            reached("prepare");
            return vote;
        }

        @Override
        public void commit(Xid xid, boolean onePhase) throws XAException {
            reached("commit");
            resource.commit(xid, onePhase);
        }

        @Override
        public void rollback(Xid xid) throws XAException {
            resource.rollback(xid);
        }

        @Override
        public void start(Xid xid, int flags) throws XAException {
            resource.start(xid, flags);
        }

        @Override
        public void end(Xid xid, int flags) throws XAException {
            resource.end(xid, flags);
        }

        @Override
        public void forget(Xid xid) throws XAException {
            resource.forget(xid);
        }

        @Override
        public Xid[] recover(int flag) throws XAException {
            return resource.recover(flag);
        }

        @Override
        public boolean isSameRM(XAResource other) throws XAException {
            return this == other;
        }

        @Override
        public int getTransactionTimeout() throws XAException {
            return resource.getTransactionTimeout();
        }

        @Override
        public boolean setTransactionTimeout(int seconds) throws XAException {
            return resource.setTransactionTimeout(seconds);
        }
    }
}

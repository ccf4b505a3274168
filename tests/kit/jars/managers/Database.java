import java.nio.charset.StandardCharsets;
import java.sql.Connection;
import java.sql.SQLException;
import javax.sql.ConnectionEventListener;
import javax.sql.StatementEventListener;
import javax.sql.XAConnection;
import javax.transaction.xa.XAResource;
import javax.transaction.xa.Xid;
import org.postgresql.xa.PGXADataSource;

/** One of the two. */
final class Database extends PGXADataSource {
    final transient String name;
    /** What a purchase does in it; {@code {id}} is the purchase's number. */
    final transient String work;
    private final transient Death death;

    Database(String name, String url, String work, Death death) {
        this.name = name;
        this.work = work;
        this.death = death;
        setURL(url);
    }

    @Override
    public XAConnection getXAConnection() throws SQLException {
        XAConnection connection = super.getXAConnection();
        return death == null ? connection : new Watched(connection, death.in(connection.getXAResource()));
    }

    /** Whether something of this manager, by its name, is prepared in it. */
    boolean has(String manager) throws Exception {
        XAConnection connection = super.getXAConnection();
        try {
            for (Xid xid : connection.getXAResource().recover(XAResource.TMSTARTRSCAN | XAResource.TMENDRSCAN)) {
                if (new String(xid.getGlobalTransactionId(), StandardCharsets.ISO_8859_1).contains(manager)) {
                    return true;
                }
            }
            return false;
        } finally {
            connection.close();
        }
    }

    /** A connection whose transactions are seen on their way. */
    private record Watched(XAConnection connection, XAResource resource) implements XAConnection {
        @Override
        public XAResource getXAResource() {
            return resource;
        }

        @Override
        public Connection getConnection() throws SQLException {
            return connection.getConnection();
        }

        @Override
        public void close() throws SQLException {
            connection.close();
        }

        @Override
        public void addConnectionEventListener(ConnectionEventListener listener) {
            connection.addConnectionEventListener(listener);
        }

        @Override
        public void removeConnectionEventListener(ConnectionEventListener listener) {
            connection.removeConnectionEventListener(listener);
        }

        @Override
        public void addStatementEventListener(StatementEventListener listener) {
            connection.addStatementEventListener(listener);
        }

        @Override
        public void removeStatementEventListener(StatementEventListener listener) {
            connection.removeStatementEventListener(listener);
        }
    }
}

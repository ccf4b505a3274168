import com.arjuna.ats.arjuna.recovery.RecoveryManager;
import com.arjuna.ats.arjuna.recovery.RecoveryModule;
import com.arjuna.ats.internal.jta.recovery.arjunacore.RecoveryXids;
import com.arjuna.ats.internal.jta.recovery.arjunacore.XARecoveryModule;
import com.arjuna.ats.jta.recovery.XAResourceRecoveryHelper;
import jakarta.transaction.TransactionManager;
import java.sql.Connection;
import java.sql.SQLException;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import javax.sql.XAConnection;
import javax.transaction.xa.XAException;
import javax.transaction.xa.XAResource;

/** Narayana, without a server or a pool around it: a connection to each database for each thread. */
final class Narayana implements Manager {
    /** How long a branch without a decision must be seen before it counts as forgotten, where others are under way: longer than any of them. */
    private static final int SAFETY_MILLIS = 60_000;

    private final RecoveryManager recovery;
    private final ThreadLocal<Map<Database, XAConnection>> connections = ThreadLocal.withInitial(HashMap::new);

    Narayana(String name, String log, List<Database> databases) {
        System.setProperty("CoreEnvironmentBean.nodeIdentifier", name);
        System.setProperty("JTAEnvironmentBean.xaRecoveryNodes", name);
        for (String store : List.of("", "stateStore.", "communicationStore.")) {
            System.setProperty("ObjectStoreEnvironmentBean." + store + "objectStoreDir", log);
        }
        // At the start nobody buys: what is seen is forgotten.
        System.setProperty("JTAEnvironmentBean.orphanSafetyInterval", "1");
        System.setProperty("RecoveryEnvironmentBean.recoveryBackoffPeriod", "1");
        recovery = RecoveryManager.manager(RecoveryManager.DIRECT_MANAGEMENT);
        for (RecoveryModule module : recovery.getModules()) {
            if (module instanceof XARecoveryModule branches) {
                databases.forEach(database -> branches.addXAResourceRecoveryHelper(new Helper(database)));
            }
        }
    }

    @Override
    public TransactionManager transactions() {
        return com.arjuna.ats.jta.TransactionManager.transactionManager();
    }

    @Override
    public Connection connect(Database database) throws Exception {
        XAConnection connection = connections.get().get(database);
        if (connection == null) {
            connection = database.getXAConnection();
            connections.get().put(database, connection);
        }
        transactions().getTransaction().enlistResource(connection.getXAResource());
        return connection.getConnection();
    }

    @Override
    public void recover() {
        recovery.scan();
    }

    @Override
    public void opens() {
        RecoveryXids.setSafetyIntervalMillis(SAFETY_MILLIS);
    }

    @Override
    public void failed() {
        for (XAConnection connection : connections.get().values()) {
            try {
                connection.close();
            } catch (SQLException ignored) {
                // It was broken.
            }
        }
        connections.get().clear();
    }

    /** What recovery works with in a database: one connection for as long as it answers, since Narayana keeps what it was given. */
    private static final class Helper implements XAResourceRecoveryHelper {
        private final Database database;
        private XAResource resource;

        Helper(Database database) {
            this.database = database;
        }

        @Override
        public boolean initialise(String parameter) {
            return true;
        }

        @Override
        public XAResource[] getXAResources() throws SQLException {
            if (resource == null || !answers()) {
                resource = database.getXAConnection().getXAResource();
            }
            return new XAResource[] {resource};
        }

        private boolean answers() {
            try {
                resource.recover(XAResource.TMSTARTRSCAN | XAResource.TMENDRSCAN);
                return true;
            } catch (XAException failure) {
                return false;
            }
        }
    }
}

import com.atomikos.icatch.config.Configuration;
import com.atomikos.icatch.config.UserTransactionServiceImp;
import com.atomikos.icatch.jta.UserTransactionManager;
import com.atomikos.jdbc.AtomikosDataSourceBean;
import jakarta.transaction.TransactionManager;
import java.sql.Connection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;

/** Atomikos with pools of its own. */
final class Atomikos implements Manager {
    private static final int SPARE = 4;

    private final UserTransactionManager transactions = new UserTransactionManager();
    private final Map<Database, AtomikosDataSourceBean> pools = new HashMap<>();

    Atomikos(String name, String log, List<Database> databases, int threads) throws Exception {
        Properties properties = new Properties();
        properties.setProperty("com.atomikos.icatch.tm_unique_name", name);
        properties.setProperty("com.atomikos.icatch.log_base_dir", log);
        properties.setProperty("com.atomikos.icatch.max_actives", "-1");
        // A branch without a decision counts as forgotten when it is older than any transaction may be.
        properties.setProperty("com.atomikos.icatch.max_timeout", "3000");
        properties.setProperty("com.atomikos.icatch.default_jta_timeout", "3000");
        // To end what is decided, in a database that was away: ten seconds by default.
        properties.setProperty("com.atomikos.icatch.oltp_retry_interval", "1000");
        for (Database database : databases) {
            AtomikosDataSourceBean pool = new AtomikosDataSourceBean();
            pool.setUniqueResourceName(database.name);
            pool.setXaDataSource(database);
            pool.setMinPoolSize(threads);
            // A connection to a server that was away is not given back before its transaction has ended.
            pool.setMaxPoolSize(SPARE * threads);
            // Seconds: who waits for one does not see that the server is back.
            pool.setBorrowConnectionTimeout(2);
            pool.init();
            pools.put(database, pool);
        }
        new UserTransactionServiceImp(properties).init();
        transactions.setStartupTransactionService(false);
        transactions.init();
    }

    @Override
    public TransactionManager transactions() {
        return transactions;
    }

    @Override
    public Connection connect(Database database) throws Exception {
        return pools.get(database).getConnection();
    }

    @Override
    public void recover() throws Exception {
        Configuration.getRecoveryService().performRecovery();
        Thread.sleep(100);
    }
}

import jakarta.transaction.TransactionManager;
import java.sql.Connection;

/** A transaction manager over two databases, as a program that buys sees it. */
interface Manager {
    TransactionManager transactions();

    /** A connection whose work is part of the thread's transaction; closed before the transaction ends. */
    Connection connect(Database database) throws Exception;

    /** Looks once for what earlier processes of this name have left, and ends it. */
    void recover() throws Exception;

    /** From now on transactions are under way while {@link #recover} looks. */
    default void opens() {}

    /** A purchase of this thread has failed: a connection that it had may be broken. */
    default void failed() {}
}

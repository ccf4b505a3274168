"""Buys: work in two databases, committed in both or in none with the two-phase commit of psycopg 3. What an earlier process of the same
name has left behind is ended before.

python3 shop.py name=NAME orders=URL order=SQL inventory=URL reserve=SQL [first=1] [purchases=0] [threads=1]
    [rate=0 (a second; 0: as many as go)] [die=prepare:N|commit:N]

Decisions are rows of the table `decided` in orders, which is made where it is missing.
"""

import itertools
import os
import signal
import sys
import threading
import time
import traceback
import uuid

import psycopg

# Whose branches are ours: the number is any that no other manager has.
FORMAT = 5250

TABLE = "CREATE TABLE IF NOT EXISTS decided (gid text PRIMARY KEY, committed boolean NOT NULL)"


class Death:
    """The end of this process at a place: `prepare:20` is behind the twentieth, `commit:20` before it."""

    def __init__(self, place):
        self.call, at = place.split(":")
        self.left = int(at)

    def reached(self, call):
        if call == self.call:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def recover(name, orders, inventory, log):
    """Ends what is prepared under this name: nobody else of the name is at work."""
    for branch in (orders, inventory):
        for xid in branch.tpc_recover():
            if xid.format_id != FORMAT or xid.database != branch.info.dbname or not xid.gtrid.startswith(name + "/"):
                continue
            log.execute("INSERT INTO decided (gid, committed) VALUES (%s, false) ON CONFLICT DO NOTHING", [xid.gtrid])
            (committed,) = log.execute("SELECT committed FROM decided WHERE gid = %s", [xid.gtrid]).fetchone()
            if committed:
                branch.tpc_commit(xid)
            else:
                branch.tpc_rollback(xid)


class Buyer:
    def __init__(self, told):
        self.name = told["name"]
        self.work = [told["order"], told["reserve"]]
        # tpc_recover can read times in no other style.
        self.branches = [psycopg.connect(told[name], options="-c DateStyle=ISO") for name in ("orders", "inventory")]
        self.log = psycopg.connect(told["orders"], autocommit=True)

    def buy(self, number, death):
        gtrid = f"{self.name}/{uuid.uuid4().hex}"
        for at, (branch, work) in enumerate(zip(self.branches, self.work)):
            branch.tpc_begin(branch.xid(FORMAT, gtrid, str(at)))
            branch.execute(work.replace("{id}", str(number)))
        for branch in self.branches:
            branch.tpc_prepare()
            death.reached("prepare")
        self.log.execute("INSERT INTO decided (gid, committed) VALUES (%s, true)", [gtrid])
        for branch in self.branches:
            death.reached("commit")
            branch.tpc_commit()


def main():
    told = dict(argument.split("=", 1) for argument in sys.argv[1:])
    first, purchases, threads = (int(told.get(name, default)) for name, default in (("first", 1), ("purchases", 0), ("threads", 1)))
    rate = float(told.get("rate", 0))
    death = Death(told.get("die", "nowhere:0"))
    buyers = [Buyer(told) for _ in range(threads)]
    buyers[0].log.execute(TABLE)
    recover(told["name"], *buyers[0].branches, buyers[0].log)
    print("open", flush=True)
    start = time.monotonic()
    turns = itertools.count()

    def shop(buyer):
        for turn in turns:
            if turn >= purchases:
                return
            if rate > 0:
                time.sleep(max(0, start + turn / rate - time.monotonic()))
            try:
                buyer.buy(first + turn, death)
            except psycopg.Error:
                # Whatever became of it, the next process of this name ends it.
                traceback.print_exc()
                os._exit(1)

    running = [threading.Thread(target=shop, args=[buyer]) for buyer in buyers]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    print(f"bought={purchases} failed=0", flush=True)


if __name__ == "__main__":
    main()

"""Buys: work in two databases, committed in both or in none with the two-phase commit of psycopg 3. What an earlier process of the same
name has left behind is ended before.

python3 shop.py name=NAME orders=URL order=SQL inventory=URL reserve=SQL [first=1] [purchases=0] [threads=1]
    [rate=0 (a second; 0: as many as go)] [gives_up=0 (one in so many; 0: none)]
    [look=0 (seconds between two looks for what was left behind meanwhile, and two tallies; 0: none, and the first failure ends it)]
    [die=prepare:N|commit:N]

Decisions are rows of the table `decided` in orders, which is made where it is missing.
"""

import collections
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


class Tally:
    """What was bought so far, and how long that took."""

    def __init__(self):
        self.bought = self.gave_up = self.failed = 0
        # By `n`: purchases of less than 2^n microseconds, and of half of that at least.
        self.took = collections.Counter()
        self.lock = threading.Lock()

    def add(self, what, took=None):
        with self.lock:
            setattr(self, what, getattr(self, what) + 1)
            if took is not None:
                self.took[int(took * 1e6).bit_length()] += 1

    def __str__(self):
        with self.lock:
            took = ",".join(f"{bits}:{count}" for bits, count in sorted(self.took.items()))
            return f"tally bought={self.bought} gave_up={self.gave_up} failed={self.failed} took={took}"


def recover(name, orders, inventory, log):
    """Ends what is prepared under names that begin so: nobody else of them is at work."""
    for branch in (orders, inventory):
        for xid in branch.tpc_recover():
            if xid.format_id != FORMAT or xid.database != branch.info.dbname or not xid.gtrid.startswith(name):
                continue
            log.execute("INSERT INTO decided (gid, committed) VALUES (%s, false) ON CONFLICT DO NOTHING", [xid.gtrid])
            (committed,) = log.execute("SELECT committed FROM decided WHERE gid = %s", [xid.gtrid]).fetchone()
            if committed:
                branch.tpc_commit(xid)
            else:
                branch.tpc_rollback(xid)


class Buyer:
    """One of those who buy, under a name of his own."""

    branches, log = (), None

    def __init__(self, told, number):
        self.told = told
        self.name = f"{told['name']}/{number}/"
        self.work = [told["order"], told["reserve"]]
        self.gives_up = int(told.get("gives_up", 0))
        self.look = float(told.get("look", 0))
        # One that goes on after failures waits for a database that is away.
        if self.look > 0:
            self.come_back()
        else:
            self.connect()

    def connect(self):
        # tpc_recover can read times in no other style.
        self.branches = [psycopg.connect(self.told[name], options="-c DateStyle=ISO") for name in ("orders", "inventory")]
        self.log = psycopg.connect(self.told["orders"], autocommit=True)
        self.log.execute(TABLE)
        self.looked = time.monotonic()

    def look_behind(self):
        """What a killed process has sent may be prepared late. Nothing of this name is under way."""
        if self.look > 0 and time.monotonic() - self.looked > self.look:
            self.looked = time.monotonic()
            recover(self.name, *self.branches, self.log)

    def come_back(self):
        """With new connections, as soon as they can be had, and without what the last purchase has left."""
        while True:
            for connection in filter(None, [*self.branches, self.log]):
                connection.close()
            try:
                self.connect()
                recover(self.name, *self.branches, self.log)
                return
            except psycopg.Error:
                traceback.print_exc()
                time.sleep(0.5)

    def buy(self, number, death):
        """Whether it was bought, and not given up."""
        gtrid = f"{self.name}{uuid.uuid4().hex}"
        for at, (branch, work) in enumerate(zip(self.branches, self.work)):
            branch.tpc_begin(branch.xid(FORMAT, gtrid, str(at)))
            branch.execute(work.replace("{id}", str(number)))
        for branch in self.branches:
            branch.tpc_prepare()
            death.reached("prepare")
        if self.gives_up > 0 and number % self.gives_up == 0:
            for branch in self.branches:
                branch.tpc_rollback()
            return False
        self.log.execute("INSERT INTO decided (gid, committed) VALUES (%s, true)", [gtrid])
        for branch in self.branches:
            death.reached("commit")
            branch.tpc_commit()
        return True


def tell(tally, pause):
    while True:
        time.sleep(pause)
        print(tally, flush=True)


def main():
    told = dict(argument.split("=", 1) for argument in sys.argv[1:])
    first, purchases, threads = (int(told.get(name, default)) for name, default in (("first", 1), ("purchases", 0), ("threads", 1)))
    rate, look = (float(told.get(name, 0)) for name in ("rate", "look"))
    death = Death(told.get("die", "nowhere:0"))
    buyers = [Buyer(told, number) for number in range(threads)]
    # Who buys under another number than before has left something too.
    while True:
        try:
            recover(told["name"] + "/", *buyers[0].branches, buyers[0].log)
            break
        except psycopg.Error:
            if look == 0:
                raise
            traceback.print_exc()
            buyers[0].come_back()
    print("open", flush=True)
    tally = Tally()
    if look > 0:
        threading.Thread(target=tell, args=[tally, look], daemon=True).start()
    start = time.monotonic()
    turns = itertools.count()

    def shop(buyer):
        for turn in turns:
            if turn >= purchases:
                return
            if rate > 0:
                time.sleep(max(0, start + turn / rate - time.monotonic()))
            began = time.monotonic()
            try:
                buyer.look_behind()
                if buyer.buy(first + turn, death):
                    tally.add("bought", time.monotonic() - began)
                else:
                    tally.add("gave_up")
            except psycopg.Error:
                traceback.print_exc()
                if look == 0:
                    # Whatever became of it, the next process of this name ends it.
                    os._exit(1)
                tally.add("failed")
                buyer.come_back()

    running = [threading.Thread(target=shop, args=[buyer]) for buyer in buyers]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    print(f"bought={tally.bought} failed={tally.failed}", flush=True)


if __name__ == "__main__":
    main()

# What stands before the commands of a page. They run as they are written but for this:
#   addresses on the page are those of servers of the test (see world.rs);
#   `lockstep run` goes on behind the next command, once it is ready, and ends with the page or the next `run`;
#   a command that asks a running pipeline starts the page's `shop.toml` when nothing runs;
#   `lockstep init` begins anew, without what an earlier pipeline of the page has left; without a database, which would
#   ask on a terminal, it is told one, and the embedded index;
#   `status --watch`, which never ends, looks for two seconds.
set -Eeuo pipefail
PIPELINE=
AT=

say() { printf '%s\n' "$*" >&2; }
trap 'code=$?; say "$PAGE:$AT: exit code $code: $BASH_COMMAND"; [ ! -s pipeline.log ] || tail -n 15 pipeline.log >&2' ERR

end_pipeline() {
    [ -n "$PIPELINE" ] || return 0
    kill "$PIPELINE" 2>/dev/null || true
    wait "$PIPELINE" || true
    PIPELINE=
}
trap end_pipeline EXIT

begin_pipeline() {
    end_pipeline
    setpriv --pdeathsig KILL "$LOCKSTEP" run "$@" >>pipeline.log 2>&1 &
    PIPELINE=$!
    local until=$((SECONDS + 60))
    until "$LOCKSTEP" status >/dev/null 2>&1; do
        if ! kill -0 "$PIPELINE" 2>/dev/null || [ "$SECONDS" -gt "$until" ]; then
            say "$PAGE:$AT: lockstep run $* does not get ready"
            "$LOCKSTEP" status >&2 || true
            return 1
        fi
        sleep 0.1
    done
}

begin_anew() {
    end_pipeline
    rm -rf .lockstep changes index
    local url
    for url in "$SHOP_URL" "$ORDERS_URL" "$INVENTORY_URL"; do
        [ -z "$url" ] || statements "$url" <<'END'
SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database();
DROP PUBLICATION IF EXISTS lockstep;
END
    done
}

statements() { "$PSQL" -X -q -t -v ON_ERROR_STOP=1 "$1"; }

runs() { [ -n "$PIPELINE" ] && kill -0 "$PIPELINE" 2>/dev/null; }

lockstep() {
    case " $* " in
    *' --once '*) end_pipeline ;;
    ' init '*) begin_anew ;;
    ' snapshot '* | ' reconcile '* | ' status '* | ' dead-letters '* | ' transactions '*) runs || begin_pipeline shop.toml ;;
    esac
    case " $* " in
    ' run '*) shift && begin_pipeline "$@" ;;
    ' status '*' --watch '*)
        local code=0
        timeout --preserve-status --signal INT 2 "$LOCKSTEP" "$@" || code=$?
        [ "$code" = 0 ] || [ "$code" = 130 ]
        ;;
    # The variable is as the option, which says the opposite.
    *' --once '*) env -u LOCKSTEP_ADMIN_URL "$LOCKSTEP" "$@" ;;
    ' init '*'--from '* | ' init '*'--url '*) "$LOCKSTEP" "$@" --force ;;
    ' init '*) "$LOCKSTEP" "$@" --force --from "$SHOP_URL" --sink tantivy=index ;;
    *) "$LOCKSTEP" "$@" ;;
    esac
}

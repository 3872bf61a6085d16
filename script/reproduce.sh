#!/bin/sh
# Runs every row of Tables 1 to 4 and the timestep figure of the paper, cheap ones first, and writes one report page:
# asset/sd4match/report.html. Stopping is safe: the same command goes on from there. Rows whose data or weights are not
# here are named with the reason.
# --mini: on the mini world, into asset/mini/reproduce (under an hour on 2 CPU cores); --mini --smoke: a short form.
# Other arguments as in script/rows.py: --seeds 0 1 2, --opts KEY VALUE ...
. "$(dirname "$0")/run_table.sh"
render_mini "$@"
run_rows table1 table2 table3 table4 test_timestep "$@"
"$PYTHON" script/table.py --report "$@" > /dev/null
case " $* " in
    *" --smoke "*) root=asset/mini/smoke ;;
    *" --mini "*) root=asset/mini/reproduce ;;
    *) root=asset/sd4match ;;
esac
echo "report: $root/report.html"

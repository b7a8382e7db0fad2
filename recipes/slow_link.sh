#!/bin/sh
# Runs a program on several hosts with a slow link, on one machine: every host is a network namespace with one link,
# shaped to RATE. Needs root, iproute2 and a kernel with veth, bridge and tbf.
#
#     sudo RATE=1gbit HOSTS=2 recipes/slow_link.sh --output docs/results/allreduce_2_hosts.json
#     sudo PROGRAM=recipes/fsdp2_transformer.py recipes/slow_link.sh --variant 16/8 --steps 50
#     sudo TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 PROGRAM='-m torch.distributed.run --nnodes 2 --max-restarts 3 \
#         --rdzv-backend c10d --rdzv-id run1 --rdzv-endpoint 10.77.0.1:29500 --rdzv-conf is_host=$FIRST \
#         --local-addr $ADDRESS recipes/fsdp2_transformer.py' recipes/slow_link.sh --variant 16/8 --steps 50 \
#         --checkpoints /tmp/run1 --every 10
#     printf '10.77.0.1 slots=1\n10.77.0.2 slots=1\n' >/tmp/hosts
#     sudo DS_ACCELERATOR=cpu PROGRAM='-m deepspeed.launcher.runner --hostfile /tmp/hosts --no_ssh --node_rank $HOST \
#         --master_addr 10.77.0.1 recipes/zero_transformer.py' recipes/slow_link.sh --steps 50 --checkpoints /tmp/run2
#
# Without PROGRAM it measures all-reduces; options are then those of `lowprec bench allreduce`. PYTHON is the
# interpreter to use. Expect two tables; `lowprec 16` should send half of float32's bytes and take a little more than
# half of its time.
set -eu
HOSTS=${HOSTS:-2} RATE=${RATE:-1gbit} PYTHON=${PYTHON:-.venv/bin/python}
PROGRAM=${PROGRAM:--m lowprec bench allreduce}
here=$(cd "$(dirname "$0")/.." && pwd)

clean() {
    for host in $(seq 0 $((HOSTS - 1))); do ip netns del "lowprec$host" 2>/dev/null || true; done
    ip link del lowprecbr 2>/dev/null || true
}
trap clean EXIT INT TERM
clean
ip link add lowprecbr type bridge
ip link set lowprecbr up
for host in $(seq 0 $((HOSTS - 1))); do
    ip netns add "lowprec$host"
    ip link add "lowprec$host" type veth peer name eth0 netns "lowprec$host"
    ip link set "lowprec$host" master lowprecbr up
    ip netns exec "lowprec$host" ip addr add "10.77.0.$((host + 1))/24" dev eth0
    ip netns exec "lowprec$host" ip link set eth0 up
    ip netns exec "lowprec$host" ip link set lo up
    # Both directions of the link: what the host sends, and what the switch sends to it.
    ip netns exec "lowprec$host" tc qdisc add dev eth0 root tbf rate "$RATE" burst 256kb latency 50ms
    tc qdisc add dev "lowprec$host" root tbf rate "$RATE" burst 256kb latency 50ms
done
cd "$here"
for host in $(seq $((HOSTS - 1)) -1 0); do
    ADDRESS=10.77.0.$((host + 1))
    FIRST=$([ "$host" = 0 ] && echo true || echo false)
    HOST=$host
    export ADDRESS FIRST HOST
    command="GLOO_SOCKET_IFNAME=eth0 OMP_NUM_THREADS=1 MASTER_ADDR=10.77.0.1 MASTER_PORT=29511 WORLD_SIZE=$HOSTS \
        RANK=$host LOCAL_RANK=0 $PYTHON $PROGRAM $*"
    if [ "$host" = 0 ]; then
        ip netns exec "lowprec$host" sh -c "$command"
    else
        ip netns exec "lowprec$host" sh -c "$command" >/dev/null &
    fi
done
wait

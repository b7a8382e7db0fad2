#!/bin/sh
# Runs a command beside a real SLURM of several hosts on one machine: every host is a network namespace with a name, an
# address and a slurmd of its own. Needs root, iproute2 and Debian's slurm-wlm and munge. What the command queues is
# gone when it ends, so it should wait: `sbatch --wait`. NODES, and CPUS and GPUS per node (real or not), set the size.
#
#     export PATH="$PWD/.venv/bin:$PATH" DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 PROCESSES=1
#     sudo -E env "PATH=$PATH" recipes/slurm_here.sh sbatch --wait --gpus-per-node 0 --cpus-per-task 2 \
#         recipes/slurm_torchrun.sbatch recipes/zero_transformer.py --steps 20 --every 5 --checkpoints /tmp/run1
#
# Expect the job's output in slurm-1.out.
set -eu
NODES=${NODES:-2} CPUS=${CPUS:-2} GPUS=${GPUS:-1}
state=$(mktemp -d) nodes=$(seq 1 "$NODES")
export SLURM_CONF="$state/slurm.conf"

clean() {
    squeue --noheader --format=%i 2>/dev/null | xargs --no-run-if-empty scancel 2>/dev/null || true
    for _ in 1 2 3 4 5; do [ -z "$(squeue --noheader 2>/dev/null)" ] || sleep 2; done
    for pid in $(cat "$state"/*.pid 2>/dev/null); do kill "$pid" 2>/dev/null || true; done
    sleep 2
    for node in $nodes; do ip netns del "lowprecnode$node" 2>/dev/null || true; done
    ip link del lowprecslurm 2>/dev/null || true
    rm -rf "$state"
}
trap clean EXIT INT TERM

cat >"$SLURM_CONF" <<END
ClusterName=lowprec
SlurmctldHost=$(hostname)(10.78.0.254)
SlurmUser=root
AuthInfo=socket=$state/munge.socket
StateSaveLocation=$state/ctld
SlurmctldPidFile=$state/ctld.pid
SlurmdSpoolDir=$state/%n
SlurmdPidFile=$state/%n.pid
SlurmctldLogFile=$state/ctld.log
SlurmdLogFile=$state/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
MailProg=/bin/true
JobRequeue=1
GresTypes=gpu
MinJobAge=3600
NodeName=DEFAULT CPUs=$CPUS CoresPerSocket=$CPUS Gres=gpu:$GPUS State=UNKNOWN
$(for node in $nodes; do echo "NodeName=node$node NodeAddr=10.78.0.$node"; done)
PartitionName=all Nodes=ALL Default=YES State=UP
END
for gpu in $(seq 1 "$GPUS"); do touch "$state/gpu$gpu" && echo "Name=gpu File=$state/gpu$gpu"; done >"$state/gres.conf"
mkdir "$state/ctld"
dd if=/dev/urandom of="$state/munge.key" bs=1024 count=1 2>/dev/null
chmod 600 "$state/munge.key"
munged --force --key-file="$state/munge.key" --socket="$state/munge.socket" --pid-file="$state/munge.pid" \
    --log-file="$state/munge.log" --seed-file="$state/munge.seed"

{ echo "127.0.0.1 localhost"; for node in $nodes; do echo "10.78.0.$node node$node"; done; } >"$state/hosts"

ip link add lowprecslurm type bridge
ip addr add 10.78.0.254/24 dev lowprecslurm
ip link set lowprecslurm up
slurmctld
for node in $nodes; do
    name=lowprecnode$node
    ip netns add "$name"
    ip link add "$name" type veth peer name eth0 netns "$name"
    ip link set "$name" master lowprecslurm up
    ip netns exec "$name" ip addr add "10.78.0.$node/24" dev eth0
    ip netns exec "$name" ip link set eth0 up
    ip netns exec "$name" ip link set lo up
    nsenter --net="/run/netns/$name" unshare --uts --mount sh -c \
        "hostname node$node && mount --bind $state/hosts /etc/hosts && exec slurmd -N node$node"
done
until [ "$(sinfo --noheader --states=idle --format=%D)" = "$NODES" ]; do sleep 1; done
"$@"

package executors_test

import (
	"testing"

	"github.com/musterhq/muster/test/kit/need"
)

// dockerImage is what Docker's executor is tried with: busybox and nothing else. It
// is made by the test and stays, for the next run to find.
const dockerImage = "muster-conformance/busybox:local"

// makeImage makes that image, and writes a template of a task with it.
const makeImage = `
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/bin"
cp "$(command -v busybox)" "$dir/bin/busybox"
for applet in sh sleep cat echo printf; do ln -s busybox "$dir/bin/$applet"; done
tar -C "$dir" -cf - bin | docker import - ` + dockerImage + `
sed 's,busybox:stable,` + dockerImage + `,' plugins/conformance/tasks/container.yaml > "$TEMPLATE"
`

// TestConformance tries what ships and the example in Python with the command, as
// an author would. The tutorial tries the example in Go.
func TestConformance(t *testing.T) {
	t.Parallel()
	needs(t)
	need.Answer(t, "docker", "version")
	need.Program(t, "busybox")
	dir := programs(t)
	run(t, "make build BIN="+dir)
	run(t, "examples/executor-python/build "+dir+"/muster-executor-python")
	run(t, makeImage, "TEMPLATE="+dir+"/container.yaml")
	for name, args := range map[string]string{
		"process": "plugins/muster-executor-process",
		"null":    "plugins/muster-executor-null",
		"docker":  "plugins/muster-executor-docker --task " + dir + "/container.yaml",
		"python":  "muster-executor-python --task examples/executor-python/task.yaml",
		"overlay": "plugins/muster-network-overlay",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, dir+"/muster plugin test --json --patience 3m "+dir+"/"+args)
		})
	}
	t.Run("cni", func(t *testing.T) {
		t.Parallel()
		need.Program(t, "ip")
		need.Answer(t, "ls", "/usr/lib/cni/bridge")
		run(t, tryCNI, "DIR="+dir)
	})
	t.Run("network example", func(t *testing.T) {
		t.Parallel()
		need.Program(t, "ip")
		need.Program(t, "nsenter")
		run(t, tryExample, "DIR="+dir)
	})
}

// tryCNI tries the network plugin for CNI with a bridge, in a network namespace that stands
// for the host's.
const tryCNI = `
host=muster-cni-$$
ip netns add $host
trap 'ip netns del $host' EXIT
mkdir -p "$DIR/net.d"
cat > "$DIR/net.d/10-try.conflist" <<END
{"cniVersion": "1.0.0", "name": "try", "plugins": [{"type": "bridge", "bridge": "try0", "isGateway": true,
	"ipam": {"type": "host-local", "dataDir": "$DIR/addresses", "subnet": "10.217.0.0/24"}}]}
END
ip netns exec $host "$DIR/muster" plugin test --json --env NETCONFPATH="$DIR/net.d" --own-addresses --driver-opt config=try \
	"$DIR/plugins/muster-network-cni"
`

// tryExample tries the example of a network plugin, in a network namespace that stands for
// the host's.
const tryExample = `
host=muster-lan-$$
ip netns add $host
trap 'ip netns del $host' EXIT
ip -n $host link add p0 type bridge
ip -n $host link set p0 up
CGO_ENABLED=0 go -C examples/network-go build -o "$DIR/muster-network-lan" .
ip netns exec $host "$DIR/muster" plugin test --json --driver-opt parent=p0 "$DIR/muster-network-lan"
`

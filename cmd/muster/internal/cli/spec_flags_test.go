package cli

import (
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/testing/protocmp"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// TestFlagsSetFieldsOfTheSpec checks the specs that create and update send.
func TestFlagsSetFieldsOfTheSpec(t *testing.T) {
	t.Setenv("MUSTER_TEST_FLAG", "from here")
	shared := []string{
		"--hostname", "h", "--user", "u:g", "--workdir", "/w", "--stop-signal", "SIGINT", "--read-only", "-t", "--init=false", "--entrypoint", "/bin/sh -c",
		"--stop-grace-period", "1m", "--pull-policy", "missing", "--health-cmd", "curl localhost", "--health-interval", "2s", "--health-timeout", "3s",
		"--health-start-period", "4s", "--health-retries", "5", "--limit-cpu", "0.5", "--limit-memory", "512m", "--limit-pids", "7", "--reserve-cpu", "0.25",
		"--reserve-memory", "256m", "--replicas-max-per-node", "2", "--restart-condition", "on-failure", "--restart-delay", "8s", "--restart-window", "9s",
		"--restart-max-attempts", "10", "--log-driver", "journald", "--endpoint-mode", "dnsrr", "--drain-delay", "5s", "--update-parallelism", "3", "--update-delay", "11s",
		"--update-monitor", "12s", "--update-failure-action", "rollback", "--update-max-failure-ratio", "0.5", "--update-order", "start-first",
		"--rollback-delay", "13s", "--rollback-failure-action", "continue", "--cap-add", "NET_ADMIN", "--cap-drop", "ALL",
	}
	const fields = `
		"update": {"parallelism": 3, "delay": "11s", "monitor": "12s", "failureAction": "ROLLBACK", "maxFailureRatio": 0.5, "order": "START_FIRST"},
		"rollback": {"parallelism": 1, "delay": "13s", "failureAction": "CONTINUE"},`
	const task = `
		"resources": {"limits": {"nanoCpus": 500000000, "memoryBytes": 536870912, "pids": 7}, "reservations": {"nanoCpus": 250000000, "memoryBytes": 268435456}},
		"restart": {"condition": "ON_FAILURE", "delay": "8s", "window": "9s", "maxAttempts": 10},`
	const container = `
		"hostname": "h", "user": "u:g", "dir": "/w", "stopSignal": "SIGINT", "readOnly": true, "tty": true, "init": false, "command": ["/bin/sh", "-c"],
		"stopGracePeriod": "60s", "pullOptions": {"policy": "MISSING"},
		"healthcheck": {"test": ["CMD-SHELL", "curl localhost"], "interval": "2s", "timeout": "3s", "startPeriod": "4s", "retries": 5},`
	before := `{
		"name": "web", "replicated": {"replicas": 1}, "labels": {"kept": "1", "gone": "1"}, "dependsOn": [{"service": "db"}, {"service": "gone"}], "endpoint": {"ports": [{"targetPort": 80}, {"targetPort": 81}]},
		"task": {"networks": [{"target": "id-old"}, {"target": "id-kept"}], "placement": {"constraints": ["a==1", "b==2"]}, "container": {
			"image": "nginx:1", "env": ["KEPT=1", "CHANGED=1", "GONE=1"], "labels": {"kept": "1", "changed": "1", "gone": "1"},
			"mounts": [{"type": "BIND", "target": "/a"}, {"type": "BIND", "target": "/b"}], "ulimits": [{"name": "nofile", "soft": 1, "hard": 1}],
			"hosts": ["1.1.1.1 a", "1.1.1.1 b"], "dnsConfig": {"nameservers": ["9.9.9.9"], "search": ["gone"]}, "capabilityAdd": ["SYS_TIME"]}}}`
	for name, c := range map[string]struct {
		args, more []string
		want       string
	}{
		"create": {[]string{"service", "create", "--detach", "--name", "web"}, []string{
			"--replicas", "4", "-e", "A=1", "-e", "MUSTER_TEST_FLAG", "-e", "MUSTER_TEST_UNSET", "-l", "a=1", "-l", "b", "--container-label", "c=3", "--constraint", "d==4",
			"-p", "8080:80/udp", "-p", "target=81,mode=host", "--mount", "type=bind,source=/a,target=/b,ro", "-p", "90-91/sctp", "--network", "n", "--network", "name=m,alias=a,alias=b,driver-opt=k=v", "--dns-option", "ndots:2", "--dns-search", "example.com", "--ulimit", "nofile=1:2",
			"--host", "10.0.0.1 x", "--dns", "10.0.0.2", "--dns", "10.0.0.3", "--group", "g", "--log-opt", "k=v",
			"--depends-on", "db:healthy", "--depends-on", "service=job,condition=completed,restart,optional", "nginx:1", "arg", "-x",
		}, `{"name": "web", "labels": {"a": "1", "b": ""}, "replicated": {"replicas": 4},` + fields + `
			"dependsOn": [{"service": "db", "condition": "HEALTHY"}, {"service": "job", "condition": "COMPLETED", "restart": true, "required": false}],
			"endpoint": {"mode": "DNSRR", "drainDelay": "5s", "ports": [{"targetPort": 80, "publishedPort": 8080, "protocol": "UDP"}, {"targetPort": 81, "publishMode": "HOST"},
				{"targetPort": 90, "protocol": "SCTP"}, {"targetPort": 91, "protocol": "SCTP"}]},
			"task": {` + task + `"placement": {"constraints": ["d==4"], "maxReplicas": 2}, "networks": [{"target": "n"}, {"target": "m", "aliases": ["a", "b"], "driverOptions": {"k": "v"}}], "logDriver": {"name": "journald", "options": {"k": "v"}},
				"container": {` + container + `"image": "nginx:1", "args": ["arg", "-x"], "env": ["A=1", "MUSTER_TEST_FLAG=from here"], "labels": {"c": "3"},
					"mounts": [{"type": "BIND", "source": "/a", "target": "/b", "readOnly": true}], "capabilityAdd": ["NET_ADMIN"], "capabilityDrop": ["ALL"],
					"ulimits": [{"name": "nofile", "soft": 1, "hard": 2}], "hosts": ["10.0.0.1 x"], "dnsConfig": {"nameservers": ["10.0.0.2", "10.0.0.3"], "options": ["ndots:2"], "search": ["example.com"]}, "groups": ["g"]}}}`},
		"update": {[]string{"service", "update", "--detach"}, []string{
			"--replicas", "4", "--image", "nginx:2", "--args", "x y", "--force", "--env-add", "CHANGED=2", "--env-add", "NEW=3", "--env-rm", "GONE",
			"--label-add", "new=2", "--label-rm", "gone", "--container-label-add", "changed=2", "--container-label-rm", "gone", "--constraint-add", "c==3", "--constraint-rm", "a==1",
			"--publish-add", "82", "--publish-add", "8083-8084:83-84", "--network-rm", "old", "--network-add", "name=kept,alias=x", "--network-add", "new", "--dns-add", "1.1.1.1", "--dns-rm", "9.9.9.9", "--dns-search-rm", "gone", "--publish-rm", "8080:80", "--mount-add", "type=tmpfs,target=/c", "--mount-rm", "/a", "--ulimit-add", "nofile=3", "--host-add", "1.1.1.1 c",
			"--host-rm", "1.1.1.1 a", "--depends-on-add", "db:started", "--depends-on-rm", "gone", "web",
		}, `{"name": "web", "labels": {"kept": "1", "new": "2"}, "replicated": {"replicas": 4}, "dependsOn": [{"service": "db", "condition": "STARTED"}],` + fields + `
			"endpoint": {"mode": "DNSRR", "drainDelay": "5s", "ports": [{"targetPort": 81}, {"targetPort": 82}, {"publishedPort": 8083, "targetPort": 83}, {"publishedPort": 8084, "targetPort": 84}]},
			"task": {` + task + `"forceUpdate": 1, "placement": {"constraints": ["b==2", "c==3"], "maxReplicas": 2}, "networks": [{"target": "kept", "aliases": ["x"]}, {"target": "new"}], "logDriver": {"name": "journald"},
				"container": {` + container + `"image": "nginx:2", "args": ["x", "y"], "env": ["KEPT=1", "CHANGED=2", "NEW=3"], "labels": {"kept": "1", "changed": "2"},
					"mounts": [{"type": "BIND", "target": "/b"}, {"type": "TMPFS", "target": "/c"}], "capabilityAdd": ["SYS_TIME", "NET_ADMIN"], "capabilityDrop": ["ALL"],
					"ulimits": [{"name": "nofile", "soft": 3, "hard": 3}], "hosts": ["1.1.1.1 b", "1.1.1.1 c"], "dnsConfig": {"nameservers": ["1.1.1.1"]}}}}`},
		"process": {[]string{"service", "create", "--detach", "--kind", "process", "-e", "A=1", "--no-healthcheck=false", "--", "sleep", "1"}, nil,
			`{"replicated": {"replicas": 1}, "task": {"generic": {"kind": "process", "payload": {"command": ["sleep", "1"], "env": ["A=1"]}}}}`},
		"process with files": {[]string{
			"service", "create", "--detach", "--kind", "process", "--secret", "password", "--secret", "source=key,target=/k,mode=0400,on-change=restart", "--config", "source=app,uid=5", "--", "sleep", "1",
		}, nil, `{"replicated": {"replicas": 1}, "task": {"generic": {"kind": "process", "payload": {"command": ["sleep", "1"]}}, "resourceReferences": [
			{"type": "SECRET", "id": "password"}, {"type": "SECRET", "id": "key", "file": {"name": "/k", "mode": 256}, "onChange": {"action": "RESTART"}}, {"type": "CONFIG", "id": "app", "file": {"uid": "5"}}]}}`},
		"health check turned off": {[]string{"service", "create", "--detach", "--mode", "global", "--no-healthcheck", "nginx"}, nil,
			`{"global": {}, "task": {"container": {"image": "nginx", "healthcheck": {"test": ["NONE"]}}}}`},
	} {
		t.Run(name, func(t *testing.T) {
			args := c.args
			if c.more != nil {
				args = append(append(args, shared...), c.more...)
			}
			synctest.Test(t, func(t *testing.T) {
				got, want := &musterv1.ServiceSpec{}, &musterv1.ServiceSpec{}
				r := runScripted(t, []step{{0, func(s *scripted) {
					if err := protojson.Unmarshal([]byte(before), s.service.Spec); err != nil {
						t.Fatal(err)
					}
					s.sent = got
				}}}, args...)
				if r.code != 0 {
					t.Fatalf("exit code %d: %s", r.code, r.errs)
				}
				if err := protojson.Unmarshal([]byte(c.want), want); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
					t.Errorf("spec (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// TestRefusalOfMeshPortNamesHostMode tells a user what to write where no executor can
// attach tasks to networks.
func TestRefusalOfMeshPortNamesHostMode(t *testing.T) {
	refused, err := status.New(codes.FailedPrecondition, "not possible now").WithDetails(&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
		{Field: "spec.endpoint.ports[2].publishMode", Description: "no node has an executor that can attach tasks to networks"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		r := runScripted(t, []step{{0, func(s *scripted) { s.refused = refused.Err() }}},
			"service", "create", "--detach", "-p", "1-2", "-p", "53:5353/udp", "nginx")
		const want = "--publish 53:5353/udp: no node has an executor that can attach tasks to networks: give --publish published=53,target=5353,protocol=udp,mode=host"
		if r.code != ExitUsage || !strings.Contains(r.errs, want) {
			t.Errorf("exit code %d, %s; want %s in it", r.code, r.errs, want)
		}
	})
}

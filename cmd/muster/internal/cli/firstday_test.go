package cli_test

import (
	"bytes"
	"context"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/cmd/muster/internal/cli"
	testwait "github.com/musterhq/muster/test/kit/wait"
)

// lacks checks that none of these is printed.
func (s *shell) lacks(out string, unwanted ...string) {
	s.t.Helper()
	for _, u := range unwanted {
		if strings.Contains(out, u) {
			s.t.Errorf("output has %q:\n%s", u, out)
		}
	}
}

// fails runs a command line that must fail with this code.
func (s *shell) fails(code int, input string, args ...string) (errs string) {
	s.t.Helper()
	out, errs, got := s.run(input, args...)
	if got != code {
		s.t.Errorf("muster %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), got, code, out, errs)
	}
	return errs
}

// waitForNodes waits until so many workers have joined.
func (s *shell) waitForNodes(n int) {
	s.t.Helper()
	testwait.True(s.t, "the workers have joined", func() bool {
		out, _, _ := s.run("", "node", "ls", "--format", "{{.status.state}}")
		return strings.Count(out, "READY") == n
	})
}

func TestUnknownKindIsNamedWithTheKindsThatThereAre(t *testing.T) {
	s := &shell{t, startCluster(t)}
	s.waitForNode()
	for _, command := range [][]string{nil, {"--", "sleep", "1"}} {
		errs := s.fails(cli.ExitUsage, "", append([]string{"service", "create", "--kind", "procss"}, command...)...)
		s.contains(errs, `--kind`, `there is no kind "procss"; kinds that nodes run: null`)
		s.lacks(errs, "spec.", "takes no command")
	}
	errs := s.fails(cli.ExitUsage, "", "service", "create", "--kind", "null", "--", "sleep", "1")
	s.contains(errs, `--kind: "null" takes no command: give --payload`)
}

func TestRefusalNamesFlagsOfTheCommandLine(t *testing.T) {
	s := &shell{t, startCluster(t)}
	s.waitForNode()
	s.must("service", "create", "--name", "quiet", "--kind", "null", "--detach", "-p", "8080:80")
	errs := s.fails(cli.ExitUsage, "", "service", "create", "--name", "web", "-p", "8080:80", "-p", "published=9,target=9,mode=host", "-p", "53-54:5353-5354/udp", "nginx:1")
	s.contains(errs, `--publish 8080:80: 8080/tcp is published by service "quiet"`)
	s.lacks(errs, "spec.", "publishedPort")
	errs = s.fails(cli.ExitUsage, "", "service", "update", "--publish-add", "80", "--publish-add", "target=81,mode=host,proxy-protocol", "quiet")
	s.contains(errs, "--publish-add target=81,mode=host,proxy-protocol: is for TCP ports in mode INGRESS only")
	s.lacks(errs, "spec.", "proxyProtocol")
	errs = s.fails(cli.ExitUsage, "", "service", "create", "--constraint", "node.colour==red", "--reserve-memory", "1k", "--kind", "null")
	s.contains(errs, "--constraint: ", "--reserve-memory: ")
	s.lacks(errs, "spec.")
	errs = s.fails(cli.ExitUsage, "", "service", "create", "Bad:Image:x")
	s.contains(errs, "IMAGE Bad:Image:x: ")
}

// TestRefusalAfterAutomaticRollbackNamesFlags updates a service whose last update failed
// and was rolled back.
func TestRefusalAfterAutomaticRollbackNamesFlags(t *testing.T) {
	s := &shell{t, startCluster(t)}
	s.waitForNode()
	s.must("service", "create", "--name", "web", "--kind", "null", "--payload", `{"runFor":"1h"}`, "--update-failure-action", "rollback", "--update-monitor", "10s", "--rollback-monitor", "1s")
	s.fails(cli.ExitNotConverged, "", "service", "update", "--payload", `{"runFor":"0s","exitCode":1}`, "web")
	errs := s.fails(cli.ExitUsage, "", "service", "update", "--constraint-add", "node.role==worker", "web")
	s.contains(errs, "--payload: the last update of service \"web\" changed this, failed", "muster service rollback web", "--force")
	s.lacks(errs, "fields", "task.generic")
	s.must("service", "rollback", "--detach", "web")
}

func TestPsOfUnknownNamesFails(t *testing.T) {
	s := &shell{t, startClusterOf(t, []string{"worker1", "worker2"})}
	s.waitForNodes(2)
	s.must("service", "create", "--name", "web", "--kind", "null", "--replicas", "2")
	s.must("service", "create", "--name", "other", "--kind", "null")
	s.contains(s.fails(cli.ExitNotFound, "", "service", "ps", "nosuch"), `there is no service "nosuch"`)
	s.contains(s.fails(cli.ExitNotFound, "", "node", "ps", "nosuch"), `there is no node "nosuch"`)
	s.contains(s.fails(cli.ExitNotFound, "", "ps", "nosuch"), `"nosuch"`)
	out, errs, code := s.run("", "service", "ps", "web", "nosuch")
	if code != cli.ExitNotFound {
		t.Errorf("one of two services is missing: exit code %d, want %d", code, cli.ExitNotFound)
	}
	s.contains(out, "web.1")
	s.contains(errs, `there is no service "nosuch"`)
	id := strings.TrimSpace(s.must("service", "inspect", "web", "--format", "{{.id}}"))
	s.contains(s.must("service", "ps", id[:20]), "web.1", "web.2")

	out = s.must("ps")
	s.contains(out, "web.1", "web.2", "other.1")
	out = s.must("ps", "other")
	s.contains(out, "other.1")
	s.lacks(out, "web.")
	if tasks := strings.Fields(s.must("ps", "-q", "worker1", "worker2", "web")); len(tasks) != 3 {
		t.Errorf("ps of both nodes and of a service lists %d tasks, want each of the 3 once", len(tasks))
	}
}

func TestNodesAreSortedAndUpdatedTogether(t *testing.T) {
	s := &shell{t, startClusterOf(t, []string{"zebra", "ant", "mole"})}
	s.waitForNodes(3)
	if got := strings.Fields(s.must("node", "ls", "--format", "{{.description.hostname}}")); !slices.Equal(got, []string{"ant", "mole", "zebra"}) {
		t.Errorf("node ls is in the order %v", got)
	}
	out, errs, code := s.run("", "node", "update", "--availability", "drain", "--label-add", "a=b", "zebra", "nosuch", "ant")
	if code != cli.ExitNotFound || out != "zebra\nant\n" {
		t.Errorf("exit code %d, want %d; changed %q", code, cli.ExitNotFound, out)
	}
	s.contains(errs, `there is no node "nosuch"`)
	got := s.must("node", "ls", "--format", "{{.description.hostname}} {{.spec.availability}} {{json .spec.labels}}")
	s.contains(got, `ant DRAIN {"a":"b"}`, "mole ACTIVE null", `zebra DRAIN {"a":"b"}`)
	s.must("service", "create", "--name", "zz", "--kind", "null", "--detach")
	s.must("service", "create", "--name", "aa", "--kind", "null", "--detach")
	if got := strings.Fields(s.must("service", "ls", "--format", "{{.spec.name}}")); !slices.Equal(got, []string{"aa", "zz"}) {
		t.Errorf("service ls is in the order %v", got)
	}
}

// TestNodesOfOneMachineShowThatTheyShareIt: CPUs that two nodes have together must not look
// like CPUs of each.
func TestNodesOfOneMachineShowThatTheyShareIt(t *testing.T) {
	s := &shell{t, startClusterOf(t, []string{"ant@attic", "bee@attic", "cow@cellar"})}
	s.waitForNodes(3)
	out := s.must("node", "ls")
	for line := range strings.Lines(out) {
		marks, want := strings.Count(line, "(shared)"), 0
		if strings.Contains(line, "ant") || strings.Contains(line, "bee") {
			want = 2 // CPUs and memory
		}
		if marks != want {
			t.Errorf("%d marks, want %d: %s", marks, want, line)
		}
	}
	s.lacks(s.must("node", "ls", "--filter", "name=ant"), "(shared)")
	out = s.must("node", "inspect", "--format", "table", "bee", "cow")
	s.contains(out, "MACHINE", "attic", "cellar")
}

func TestInspectPrintsTables(t *testing.T) {
	s := &shell{t, startCluster(t)}
	s.waitForNode()
	s.must("service", "create", "--name", "web", "--kind", "null")
	s.contains(s.must("service", "inspect", "--format", "table", "web"), "REPLICAS", "1/1")
	s.contains(s.must("node", "inspect", "--format", "table", "worker1"), "HOSTNAME", "worker1")
	s.contains(s.must("cluster", "inspect", "--format", "table"), "SERVICES", "READY")
	s.contains(s.must("service", "inspect", "web"), `"converged": true`)
}

func TestContextListSaysThatThereIsNone(t *testing.T) {
	t.Setenv("MUSTER_CONTEXTS_FILE", filepath.Join(t.TempDir(), "contexts.json"))
	out, errs, code := (&shell{t, "127.0.0.1:1"}).run("", "context", "ls")
	if code != 0 || out != "" || !strings.Contains(errs, "there is no context") || !strings.Contains(errs, "muster login") {
		t.Errorf("exit code %d, output %q, errors %q", code, out, errs)
	}
}

func TestSpecFileErrorsNameLines(t *testing.T) {
	s := &shell{t, startCluster(t)}
	s.waitForNode()
	for name, tt := range map[string]struct {
		file  string
		wants []string
	}{
		"unknown field": {
			"name: x\nreplicatd: {replicas: 2}\ntask:\n  generic: {kind: \"null\"}\n  restrt: {}\n",
			[]string{`standard input:2: there is no field "replicatd"; did you mean "replicated"?`, `standard input:5: task: there is no field "restrt"; did you mean "restart"?`, "placement"},
		},
		"refused by the API": {"name: x\ntask:\n  generic:\n    kind: \"null\"\n  placement:\n    constraints:\n    - node.id==a\n    - nonsense\n", []string{"standard input:8: task.placement.constraints[1]: "}},
	} {
		t.Run(name, func(t *testing.T) {
			s := &shell{t, s.address}
			errs := s.fails(cli.ExitUsage, tt.file, "service", "create", "--file", "-")
			s.contains(errs, tt.wants...)
			s.lacks(errs, "proto:", "(line 1:")
		})
	}
	s.must("service", "create", "--name", "x", "--kind", "null", "--detach")
	s.contains(s.fails(cli.ExitUsage, "name: x\ntask:\n  generc: {}\n", "service", "update", "--file", "-", "x"), "standard input:3: task: ")
}

func TestSpecFileTakesAliasesAndBothFieldSpellings(t *testing.T) {
	s := &shell{t, startCluster(t)}
	s.waitForNode()
	spec := "name: x\nlabels: &l {a: \"1\", 2: \"yes\"}\ntask:\n  force_update: 3\n  restart: {<<: &r {condition: ANY, delay: 2s}, delay: 3s}\n  generic:\n    kind: \"null\"\n    payload: {runFor: 1h}\nupdate: {parallelism: \"2\", maxFailureRatio: 0.5}\n"
	_, errs, code := s.run(spec, "service", "create", "--file", "-", "--detach")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	s.contains(s.must("service", "inspect", "x", "--format", "{{json .spec}}"), `"labels":{"2":"yes","a":"1"}`, `"forceUpdate":"3"`, `"delay":"3s"`, `"condition":"ANY"`, `"runFor":"1h"`, `"parallelism":"2"`)
}

// broken is an API server that answers, and whose store does not.
type broken struct {
	musterv1.UnimplementedControlServiceServer
	code codes.Code
}

func (b broken) ListServices(context.Context, *musterv1.ListServicesRequest) (*musterv1.ListServicesResponse, error) {
	return nil, status.Error(b.code, "the store has not answered for 12s; nothing was changed")
}

func (b broken) ListNodes(context.Context, *musterv1.ListNodesRequest) (*musterv1.ListNodesResponse, error) {
	return nil, status.Error(b.code, "the store has not answered for 12s; nothing was changed")
}

func (b broken) Watch(*musterv1.WatchRequest, grpc.ServerStreamingServer[musterv1.WatchResponse]) error {
	return status.Error(b.code, "the store has not answered for 12s; nothing was changed")
}

func TestHintsTellServerFromStore(t *testing.T) {
	for _, code := range []codes.Code{codes.Unavailable, codes.DeadlineExceeded} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		server := grpc.NewServer()
		musterv1.RegisterControlServiceServer(server, broken{code: code})
		ended := make(chan error, 1)
		go func() { ended <- server.Serve(l) }()
		t.Cleanup(func() {
			server.Stop()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
		s := &shell{t, l.Addr().String()}
		for _, args := range [][]string{{"service", "ls"}, {"events"}} {
			errs := s.fails(cli.ExitUnavailable, "", args...)
			s.contains(errs, "the store has not answered for 12s", "muster cluster status")
			s.lacks(errs, "Is apid running", "muster dev")
		}
	}
}

// complete returns what the shell's completion gets for a command line whose last
// word is being typed, without descriptions.
func (s *shell) complete(words ...string) (candidates []string, directive string) {
	s.t.Helper()
	var o, e bytes.Buffer
	c := &cli.CLI{In: strings.NewReader(""), Out: &o, Err: &e}
	root := &cobra.Command{Use: "muster", SilenceErrors: true, SilenceUsage: true}
	c.AddCommands(root)
	cli.RefuseBadUsage(root)
	root.SetArgs(slices.Concat([]string{cobra.ShellCompRequestCmd, words[0], "--address", s.address}, words[1:]))
	root.SetOut(&o)
	root.SetErr(&e)
	if err := root.ExecuteContext(s.t.Context()); err != nil {
		s.t.Fatalf("complete %q: %v", words, err)
	}
	if err := c.Close(); err != nil {
		s.t.Error(err)
	}
	lines := strings.Split(strings.TrimSpace(o.String()), "\n")
	for _, line := range lines[:len(lines)-1] {
		word, _, _ := strings.Cut(line, "\t")
		candidates = append(candidates, word)
	}
	if !strings.HasPrefix(e.String(), "Completion ended") {
		s.t.Errorf("complete %q writes to the terminal: %s", words, e.String())
	}
	return candidates, lines[len(lines)-1]
}

func TestCompletion(t *testing.T) {
	t.Setenv("MUSTER_CONTEXTS_FILE", filepath.Join(t.TempDir(), "contexts.json"))
	s := &shell{t, startCluster(t)}
	s.waitForNode()
	s.must("service", "create", "--name", "web", "--kind", "null")
	s.must("service", "create", "--name", "worker", "--kind", "null")
	s.must("node", "update", "--label-add", "disk=ssd", "worker1")
	s.must("service", "create", "--name", "placed", "--kind", "null", "--constraint", "node.labels.disk==ssd")
	task := strings.Fields(s.must("ps", "-q", "web"))[0]
	for _, tt := range []struct {
		words []string
		want  []string
	}{
		{[]string{"service", "inspect", "w"}, []string{"web", "worker"}},
		{[]string{"service", "rm", "web", ""}, []string{"worker"}},
		{[]string{"service", "update", "web", ""}, nil},
		{[]string{"service", "scale", "we"}, []string{"web="}},
		{[]string{"service", "logs", "wo"}, []string{"worker"}},
		{[]string{"node", "update", "--availability", "drain", "w"}, []string{"worker1"}},
		{[]string{"node", "update", "--availability", ""}, []string{"active", "pause", "drain"}},
		{[]string{"ps", "wor"}, []string{"worker", "worker1"}},
		{[]string{"task", "inspect", task[:20]}, []string{task}},
		{[]string{"service", "create", "--kind", ""}, []string{"null"}},
		{[]string{"service", "create", "--mode", "g"}, []string{"global"}},
		{[]string{"service", "create", "--update-order", "start"}, []string{"start-first"}},
		{[]string{"service", "update", "--restart-condition", "on"}, []string{"on-failure"}},
		{[]string{"token", "create", "--role", ""}, []string{"viewer", "operator", "admin"}},
		{[]string{"cluster", "join-token", "w"}, []string{"worker"}},
		{[]string{"events", "--kind", "n"}, []string{"node"}},
		{[]string{"events", "--service", "we"}, []string{"web"}},
		{[]string{"service", "ls", "--filter", "na"}, []string{"name="}},
		{[]string{"ps", "--filter", "service=we"}, []string{"service=web"}},
		{[]string{"ps", "--filter", "state=run"}, []string{"state=running"}},
		{[]string{"service", "ls", "--format", "j"}, []string{"json"}},
		{[]string{"service", "create", "--constraint", "node.h"}, []string{"node.hostname==", "node.hostname!="}},
		{[]string{"service", "create", "--constraint", "node.hostname=="}, []string{"node.hostname==worker1"}},
		{[]string{"service", "create", "--constraint", "node.labels."}, []string{"node.labels.disk==", "node.labels.disk!="}},
		{[]string{"service", "create", "--constraint", "node.labels.disk!=s"}, []string{"node.labels.disk!=ssd"}},
		{[]string{"service", "update", "--constraint-add", "node.role==w"}, []string{"node.role==worker"}},
		{[]string{"service", "update", "--constraint-add", "node.platform.os==l"}, []string{"node.platform.os==linux"}},
		{[]string{"service", "update", "placed", "--constraint-rm", ""}, []string{"node.labels.disk==ssd"}},
		{[]string{"service", "create", "--constraint", "node.colour=="}, nil},
		{[]string{"node", "ls", ""}, nil},
	} {
		got, _ := s.complete(tt.words...)
		for _, w := range tt.want {
			if !slices.Contains(got, w) {
				t.Errorf("muster %s<TAB>: %q, want %q among it", strings.Join(tt.words, " "), got, w)
			}
		}
		if len(tt.want) == 0 && len(got) > 0 {
			t.Errorf("muster %s<TAB>: %q, want nothing", strings.Join(tt.words, " "), got)
		}
	}
	// Without a cluster there is nothing to complete, and no message.
	away := &shell{t, "127.0.0.1:1"}
	if got, _ := away.complete("service", "inspect", ""); len(got) > 0 {
		t.Errorf("without a cluster: %q", got)
	}
}

func TestServiceWithoutNameGetsOne(t *testing.T) {
	s := &shell{t, startCluster(t)}
	s.waitForNode()
	for range 2 {
		_, errs, code := s.run("", "service", "create", "--kind", "null")
		if code != 0 {
			t.Fatalf("exit code %d: %s", code, errs)
		}
	}
	names := strings.Fields(s.must("service", "ls", "--format", "{{.spec.name}}"))
	if len(names) != 2 || names[0] == names[1] || !strings.Contains(names[0], "-") {
		t.Fatalf("the services are called %q, want two different generated names", names)
	}
	spec := "task:\n  generic: {kind: \"null\"}\nlabels: {a: b}\n"
	if _, errs, code := s.run(spec, "service", "update", "--file", "-", names[0]); code != 0 {
		t.Fatalf("update from a file without a name: exit code %d: %s", code, errs)
	}
	s.contains(s.must("service", "inspect", names[0], "--format", "{{json .spec.labels}}"), `{"a":"b"}`)
}

func TestCommandForAnotherKindNamesFlagsToGive(t *testing.T) {
	s := &shell{t, startCluster(t)}
	errs := s.fails(cli.ExitUsage, "", "service", "create", "--name", "a", "--kind", "null", "--", "true")
	s.contains(errs, `--kind: "null" takes no command`, "--kind process", "muster plugin ls")
	errs = s.fails(cli.ExitUsage, "", "service", "create", "--name", "a", "--publish", "published=99999,target=80,mode=host", "nginx:1")
	s.contains(errs, `invalid port "99999": want a number from 1 to 65535`)
}

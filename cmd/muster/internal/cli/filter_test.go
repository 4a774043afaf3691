package cli_test

import (
	"strings"
	"testing"

	"github.com/musterhq/muster/cmd/muster/internal/cli"
	testwait "github.com/musterhq/muster/test/kit/wait"
)

func TestFilters(t *testing.T) {
	s := &shell{t, startClusterOf(t, []string{"ant", "mole"})}
	s.waitForNodes(2)
	s.must("service", "create", "--name", "web", "--kind", "null", "--label", "team=a", "--replicas", "2")
	s.must("service", "create", "--name", "agent", "--kind", "null", "--mode", "global", "--label", "team=b")
	s.must("service", "create", "--name", "bare", "--kind", "null")
	s.must("node", "update", "--availability", "pause", "--label-add", "disk=ssd", "mole")
	services, nodes, tasks := "{{.spec.name}}", "{{.description.hostname}}", "{{.serviceName}}"
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"service", "ls", "--format", services, "--filter", "mode=global"}, "agent"},
		{[]string{"service", "ls", "--format", services, "--filter", "mode=replicated", "--filter", "label=team"}, "web"},
		{[]string{"service", "ls", "--format", services, "--filter", "label=!team"}, "bare"},
		{[]string{"service", "ls", "--format", services, "--filter", "label=team!=a"}, "agent bare"},
		{[]string{"service", "ls", "--format", services, "--filter", "label=team=a"}, "web"},
		{[]string{"node", "ls", "--format", nodes, "--filter", "availability=pause"}, "mole"},
		{[]string{"node", "ls", "--format", nodes, "--filter", "state=ready", "--filter", "label=!disk"}, "ant"},
		{[]string{"node", "ls", "--format", nodes, "--filter", "role=worker"}, "ant mole"},
		{[]string{"node", "ls", "--format", nodes, "--filter", "role=manager"}, ""},
		{[]string{"node", "ls", "--format", nodes, "--filter", "state=down"}, ""},
		{[]string{"ps", "--format", tasks, "--filter", "name=web.1"}, "web"},
		{[]string{"ps", "--format", tasks, "--filter", "label=team!=a", "--filter", "state=running"}, "agent agent bare"},
		{[]string{"ps", "--format", tasks, "--filter", "desired-state=running", "--filter", "label=team=a"}, "web web"},
		{[]string{"service", "ps", "--format", tasks, "--filter", "up-to-date=true", "bare"}, "bare"},
	} {
		if got := strings.Join(strings.Fields(s.must(tt.args...)), " "); got != tt.want {
			t.Errorf("muster %s: %q, want %q", strings.Join(tt.args, " "), got, tt.want)
		}
	}
	s.contains(s.fails(cli.ExitUsage, "", "service", "ls", "--filter", "mode=some"), "replicated, global")
	s.contains(s.fails(cli.ExitUsage, "", "node", "ls", "--filter", "availability=some"), "active, pause, drain")
	s.contains(s.fails(cli.ExitUsage, "", "ps", "--filter", "service=web", "web"), "--filter")
	s.contains(s.fails(cli.ExitUsage, "", "service", "ls", "--filter", "label=!"), "key!=value")
}

func TestTaskRemove(t *testing.T) {
	s := &shell{t, startCluster(t)}
	s.waitForNode()
	s.must("service", "create", "--name", "web", "--kind", "null", "--restart-delay", "0s")
	task := strings.TrimSpace(s.must("ps", "-q", "web"))
	s.contains(s.must("task", "rm", task), task)
	testwait.True(t, "the task is gone, and another runs in its place", func() bool {
		tasks := strings.Fields(s.must("ps", "--format", "{{.id}}:{{.status.state}}", "web"))
		return len(tasks) == 1 && !strings.HasPrefix(tasks[0], task) && strings.HasSuffix(tasks[0], ":RUNNING")
	})
	s.contains(s.fails(cli.ExitNotFound, "", "task", "rm", task), task)
}

func TestClusterUpdate(t *testing.T) {
	s := &shell{t, startCluster(t)}
	s.waitForNode()
	s.contains(s.fails(cli.ExitUsage, "", "cluster", "update"), "--task-history-limit")
	s.contains(s.fails(cli.ExitUsage, "", "cluster", "update", "--heartbeat-period", "1ms"), "--heartbeat-period")
	s.must("cluster", "update", "--task-history-limit", "1", "--label-add", "stage=test", "--heartbeat-period", "500ms")
	s.must("cluster", "update", "--label-add", "a=b", "--label-rm", "stage")
	s.contains(s.must("cluster", "inspect", "--format", "{{json .spec}}"), `"labels":{"a":"b"}`, `"taskHistoryRetentionLimit":"1"`, `"heartbeatPeriod":"0.500s"`)
	// One task of a slot is kept: the running one.
	s.must("service", "create", "--name", "web", "--kind", "null")
	s.must("service", "update", "--force", "web")
	testwait.True(t, "the former task is gone", func() bool { return len(strings.Fields(s.must("ps", "-q", "web"))) == 1 })
}

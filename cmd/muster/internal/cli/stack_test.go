package cli_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/musterhq/muster/cmd/muster/internal/cli"
)

func TestStackServicesAndTasksAreThoseWithItsLabel(t *testing.T) {
	s := &shell{t, startCluster(t)}
	s.waitForNode()
	for name, stack := range map[string]string{"shop_web": "shop", "shop_db": "shop", "blog_web": "blog", "other": ""} {
		s.must("service", "create", "--kind", "null", "--name", name, "--label", "com.docker.stack.namespace="+stack)
	}
	s.contains(s.must("stack", "services", "shop"), "NAME", "REPLICAS", "shop_web", "1/1")
	if got := strings.Fields(s.must("stack", "services", "shop", "--format", "{{.spec.name}}")); !slices.Equal(got, []string{"shop_db", "shop_web"}) {
		t.Errorf("stack services: %q, want those of the stack in order", got)
	}
	if got := strings.Fields(s.must("stack", "services", "shop", "--filter", "name=shop_w", "--format", "{{.spec.name}}")); !slices.Equal(got, []string{"shop_web"}) {
		t.Errorf("stack services --filter: %q", got)
	}
	tasks := s.must("stack", "ps", "shop")
	s.contains(tasks, "shop_web.1", "shop_db.1", "Running")
	s.lacks(tasks, "blog_web", "other")
	s.contains(s.must("stack", "ps", "shop", "blog"), "shop_web.1", "blog_web.1")
	for _, command := range []string{"services", "ps", "logs"} {
		s.contains(s.fails(cli.ExitNotFound, "", "stack", command, "shp"), `stack "shp"`, "muster stack ls")
	}
	s.must("stack", "logs", "shop")
}

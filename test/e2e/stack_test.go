package e2e_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/stack"
	"github.com/musterhq/muster/test/kit/wait"
)

// corpusStacks are folders of the compose corpus whose services run on any node.
var corpusStacks = []string{
	"anchors", "configs", "depends-on", "extends", "include", "interpolation", "merge", "secrets", "simple", "web-database",
}

// nullStack reads the stack that package compose makes of a folder of its corpus, and gives it
// another name and tasks of the null executor. Those use no networks, ports and files, but the
// stack keeps its networks, configs and secrets, and services their modes and dependencies.
func nullStack(t *testing.T, folder string) *musterv1.StackSpec {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../stack/compose/testdata/corpus", folder, "golden"))
	if err != nil {
		t.Fatal(err)
	}
	// Each stack has the name "shop" in the corpus.
	json, err := yaml.YAMLToJSON([]byte(strings.ReplaceAll(string(text), "shop", folder)))
	if err != nil {
		t.Fatal(err)
	}
	spec := &musterv1.StackSpec{}
	if err := protojson.Unmarshal(json, spec); err != nil {
		t.Fatal(err)
	}
	for _, s := range spec.Services {
		s.Task = &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: "null"}}}
		s.Endpoint = nil
		for _, d := range s.DependsOn {
			// Tasks of the null executor have no health checks, and do not end.
			d.Condition = musterv1.ServiceDependency_STARTED
		}
	}
	spec.Secrets = slices.DeleteFunc(spec.Secrets, func(s *musterv1.SecretSpec) bool { return s.Driver != nil })
	return spec
}

// TestStacksConverge deploys ten stacks of the compose corpus into a cluster that runs, changes
// them, rolls them back and removes them.
func TestStacksConverge(t *testing.T) {
	t.Parallel()
	s := startSite(t, siteConfig{embedded: true, devWorkers: 1})
	for _, folder := range corpusStacks {
		spec := nullStack(t, folder)
		result := s.deployStack(t, spec)
		if len(result.Services) != len(spec.Services) {
			t.Errorf("%s: %d services of %d", folder, len(result.Services), len(spec.Services))
		}
		if again := s.deployStack(t, spec); len(again.Changes) > 0 || again.Stack.Revision.Number != 1 {
			t.Errorf("%s: the second deployment made changes: %v", folder, again.Changes)
		}
	}
	for _, folder := range corpusStacks {
		spec := nullStack(t, folder)
		next := proto.CloneOf(spec)
		for _, service := range next.Services {
			service.Task.ForceUpdate = 1
		}
		for _, c := range next.Configs {
			c.Data = append(c.Data, '\n')
		}
		s.deployStack(t, next)
		if err := stack.Clean(t.Context(), s.client, next, stack.Options{}); err != nil {
			t.Errorf("%s: clean: %v", folder, err)
		}
		if again := s.deployStack(t, next); len(again.Changes) > 0 || again.Stack.Revision.Number != 2 {
			t.Errorf("%s: a deployment after the update made changes: %v", folder, again.Changes)
		}
		if _, err := stack.Rollback(t.Context(), s.client, folder, 1, stack.Options{}); err != nil {
			t.Errorf("%s: rollback: %v", folder, err)
		}
		s.awaitStack(t, spec)
	}
	for _, folder := range corpusStacks {
		if err := stack.Remove(t.Context(), s.client, folder, nil); err != nil {
			t.Errorf("%s: remove: %v", folder, err)
		}
	}
	left, err := stack.List(t.Context(), s.client)
	if err != nil || len(left) > 0 {
		t.Errorf("stacks at last: %v, %v", left, err)
	}
	s.awaitNoTasks(t)
}

// deployStack deploys a stack and waits until its services have converged.
func (s *site) deployStack(t *testing.T, spec *musterv1.StackSpec) *stack.Result {
	t.Helper()
	result, err := stack.Deploy(t.Context(), s.client, spec, stack.Options{})
	if err != nil {
		t.Fatalf("deploy stack %s: %v", spec.Name, err)
	}
	s.awaitStack(t, spec)
	return result
}

func (s *site) awaitStack(t *testing.T, spec *musterv1.StackSpec) {
	t.Helper()
	wait.Within(t, 2*time.Minute, "stack "+spec.Name+" converges", func(ctx context.Context) error {
		services, err := stack.Services(ctx, s.client, spec.Name)
		if err != nil {
			return err
		}
		for _, service := range services {
			if !service.Status.GetConverged() {
				return fmt.Errorf("%s: %d of %d tasks run: %s", service.Spec.Name, service.Status.GetRunningTasks(), service.Status.GetDesiredTasks(), service.UpdateStatus.GetMessage())
			}
		}
		if len(services) != len(spec.Services) {
			return fmt.Errorf("there are %d services of %d", len(services), len(spec.Services))
		}
		return nil
	})
}

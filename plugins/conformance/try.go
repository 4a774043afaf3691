package conformance

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

// Options say what to test.
type Options struct {
	// Command is the plugin's program, and its arguments.
	Command []string
	// Env are variables in addition to a minimal environment.
	Env []string
	// Task makes the tasks for an executor.
	Task *Template
	// Network says how networks are made for a network plugin. It is nil for an executor.
	Network *NetworkOptions
	// Rules are the rules to test; none means all.
	Rules []string
	// Parallel is the number of rules that are tested at once.
	Parallel int
	// Patience bounds calls that are not meant to wait; 0 is a minute.
	Patience time.Duration
}

// Outcome is the outcome of a rule.
type Outcome string

// The outcomes of a rule.
const (
	Kept   Outcome = "kept"
	Broken Outcome = "broken"
	// NotTried is the outcome of a rule that cannot be tested here.
	NotTried Outcome = "not tried"
)

// Result is the result of one rule.
type Result struct {
	Rule    string  `json:"rule"`
	Asks    string  `json:"asks"`
	Outcome Outcome `json:"outcome"`
	Note    string  `json:"note,omitempty"`
	// Untried says which parts of the rule were not tested, and why.
	Untried []string      `json:"untried,omitempty"`
	Faults  []string      `json:"faults,omitempty"`
	Output  []string      `json:"output,omitempty"`
	Seconds float64       `json:"seconds"`
	Took    time.Duration `json:"-"`
}

// Try tests rules on a plugin, each with a process and a state directory of its own. It
// returns an error if it could not test.
func Try(ctx context.Context, o Options) ([]Result, error) {
	rules := Rules()
	if o.Network != nil {
		// All rules see what a network plugin does to the machine.
		rules, o.Parallel = NetworkRules(), 1
	}
	if len(o.Rules) > 0 {
		for _, name := range o.Rules {
			if !slices.ContainsFunc(rules, func(r Rule) bool { return r.Name == name }) {
				return nil, fmt.Errorf("there is no rule %q", name)
			}
		}
		rules = slices.DeleteFunc(rules, func(r Rule) bool { return !slices.Contains(o.Rules, r.Name) })
	}
	// An executor may put sockets there.
	dir, err := shortTempDir()
	if err != nil {
		return nil, fmt.Errorf("make a directory for the executor's state: %w", err)
	}
	if first := o.try(ctx, starts, filepath.Join(dir, "first")); first.Outcome == Broken {
		return []Result{first}, os.RemoveAll(dir)
	}
	results := make([]Result, len(rules))
	slots := make(chan struct{}, max(o.Parallel, 1))
	var wg sync.WaitGroup
	for i, rule := range rules {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			results[i] = o.try(ctx, rule, filepath.Join(dir, rule.Name))
		})
	}
	wg.Wait()
	if err := os.RemoveAll(dir); err != nil {
		return results, fmt.Errorf("remove the executor's state: %w", err)
	}
	return results, ctx.Err()
}

// starts is tested first: an executor that does not start follows no rule.
var starts = Rule{Name: "Starts", Asks: "the program starts and shakes hands as a worker expects it", test: func(*suite) {}}

// try tests one rule.
func (o Options) try(ctx context.Context, rule Rule, dir string) (result Result) {
	began := time.Now()
	t := &trial{}
	result = Result{Rule: rule.Name, Asks: rule.Asks, Outcome: Kept}
	t.run(ctx, func() {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatalf("make a state directory: %v", err)
		}
		h := o.harness(t, dir)
		if rule.Name == "Refusals" && len(h.Wrong) == 0 {
			result.Outcome, result.Note = NotTried, "no wrong specs are known: the template has none"
			return
		}
		rule.Check(t, h)
		if rule.Needs != "" && !slices.Contains(h.capabilities(ctx), rule.Needs) {
			result.Note = "it has no " + rule.Needs + ", and says so"
			tried := "anything but that the call is answered UNIMPLEMENTED"
			if rule.noCall {
				tried = "all of it"
			}
			result.Untried = append(result.Untried, tried+": the plugin says that it has no "+rule.Needs)
			return
		}
		result.Untried = o.untried(ctx, rule, h)
	})
	if t.Failed() {
		result.Outcome, result.Note, result.Faults, result.Output = Broken, "", t.faults, t.output
	}
	result.Took = time.Since(began)
	result.Seconds = result.Took.Seconds()
	return result
}

// untried names the parts of a tested rule that were left out.
func (o Options) untried(ctx context.Context, rule Rule, h *Harness) []string {
	if h.Network != nil {
		return untriedOfNetwork(rule, h)
	}
	var untried []string
	if rule.Needs == sdk.AcceptsNetwork {
		if err := CanMakeNamespaces(); err != nil {
			return append(untried, "all of it: "+err.Error())
		}
	}
	if rule.Ends && h.Running == nil {
		why := "its tasks do not run the template's {{.Script}}"
		if o.Task.runsScripts() {
			why = "processes are seen on Linux only"
		}
		untried = append(untried, "whether what runs of a task is what the executor says: "+why)
	}
	if rule.Ends && h.Slow {
		untried = append(untried, "whether anything is left of a task but processes and files in the state directory: what an engine holds is known to the executor alone")
	}
	if rule.Name == "KilledAtAnyMoment" && h.Slow {
		untried = append(untried, "moments within the first milliseconds of calls: a task that is a container takes longer to start")
	}
	if capabilities := h.said(ctx).GetCapabilities(); rule.Ends && h.Running == nil && !slices.Contains(capabilities, "logs") {
		untried = append(untried, "to wait until a task is at work before it is ended: the executor has no logs to see it by")
	}
	return untried
}

// harness starts the executor and observes what is visible of any executor: processes, and
// files of its state.
func (o Options) harness(t *trial, dir string) *Harness {
	env := append([]string{wire.StateDirKey + "=" + dir}, o.Env...)
	left := func(taskID string) []string { return filesNamed(dir, taskID) }
	if o.Network != nil {
		return &Harness{Patience: o.Patience, Network: o.Network, Left: left, Plugin: StartProgram(t, o.Command, env...)}
	}
	made := &marks{}
	h := &Harness{
		Patience: o.Patience,
		Settle:   2 * time.Second,
		Spec: func(behavior Behavior) *musterv1.TaskSpec {
			mark := newMark()
			spec, err := o.Task.Spec(behavior, mark)
			if err != nil {
				t.Fatal(err)
			}
			made.add(mark, spec)
			return spec
		},
		Wrong: o.Task.Wrong,
		Left:  left,
	}
	if o.Task.runsScripts() && canSeeProcesses() {
		h.Watch, h.Running = made.of, made.running
	}
	h.Plugin = StartProgram(t, o.Command, env...)
	ctx, cancel := context.WithTimeout(t.Context(), defaultPatience)
	defer cancel()
	h.Slow = slices.Contains(h.said(ctx).GetKinds(), "container")
	return h
}

// filesNamed returns the files beneath a directory whose names contain an id.
func filesNamed(dir, id string) []string {
	var found []string
	_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && strings.Contains(filepath.Base(path), id) {
			found = append(found, path)
		}
		return nil
	})
	return found
}

// capabilities returns the capabilities that the plugin reports.
func (h *Harness) capabilities(ctx context.Context) []string {
	if h.Network == nil {
		return capabilities(h.said(ctx))
	}
	said, err := h.Plugin.Network().Describe(ctx, &networkv1.DescribeRequest{})
	if err != nil {
		return nil
	}
	return said.GetCapabilities()
}

// IsNetwork starts a plugin and reports whether it is a network plugin: whether it
// answers that contract. A plugin that does not start is none.
func IsNetwork(ctx context.Context, command, env []string) bool {
	found := false
	dir, err := shortTempDir()
	if err != nil {
		return false
	}
	defer func() { _ = os.RemoveAll(dir) }()
	t := &trial{}
	t.run(ctx, func() {
		ctx, cancel := context.WithTimeout(ctx, describeTime)
		defer cancel()
		p := StartProgram(t, command, append([]string{wire.StateDirKey + "=" + dir}, env...)...)
		_, err := p.Network().Describe(ctx, &networkv1.DescribeRequest{})
		found = status.Code(err) != codes.Unimplemented
	})
	return found
}

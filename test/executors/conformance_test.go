package executors_test

import "testing"

// TestConformance tries what ships and the example in Python with the command, as
// an author would. The tutorial tries the example in Go; Docker's executor has the
// same rules in its own tests, which build the image that they need.
func TestConformance(t *testing.T) {
	t.Parallel()
	needs(t)
	dir := programs(t)
	run(t, "make build BIN="+dir)
	run(t, "examples/executor-python/build "+dir+"/muster-executor-python")
	for name, args := range map[string]string{
		"process": "plugins/muster-executor-process",
		"null":    "plugins/muster-executor-null",
		"python":  "muster-executor-python --task examples/executor-python/task.yaml",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, dir+"/muster plugin test --json "+dir+"/"+args)
		})
	}
}

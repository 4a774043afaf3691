package bounds_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/nodereport"
	"github.com/musterhq/muster/workerd/internal/bounds"
)

func TestTextKeepsItsLimitAndStaysValid(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		text := string(rapid.SliceOf(rapid.SampledFrom([]byte("aä€\xff\U0001F600"))).Draw(r, "bytes"))
		limit := rapid.IntRange(40, 100).Draw(r, "limit")
		got := bounds.Text(text, limit)
		if len(got) > limit || !utf8.ValidString(got) {
			r.Errorf("%q with limit %d becomes %q", text, limit, got)
		}
		if utf8.ValidString(text) && len(text) <= limit && got != text {
			r.Errorf("%q needs no change and becomes %q", text, got)
		}
	})
	if got := bounds.Text(strings.Repeat("ä", 50), 40); got != "ääääääää... (clipped, 100 bytes)" {
		t.Errorf("clipped: %q", got)
	}
}

func TestWhatIsWithinLimitsIsNotCopied(t *testing.T) {
	t.Parallel()
	runtime := &musterv1.RuntimeStatus{Id: "c1", Health: &musterv1.Health{Output: "refused"}}
	ports := []*musterv1.PortConfig{{Name: "http"}, {Name: "metrics"}}
	if bounds.Runtime(runtime) != runtime || &bounds.Ports(ports)[0] != &ports[0] || bounds.Runtime(nil) != nil || bounds.Ports(nil) != nil {
		t.Error("something was copied")
	}
}

// TestCopiesLeaveTheOriginal checks that a clipped copy holds everything else, and
// that what the executor returned is not changed.
func TestCopiesLeaveTheOriginal(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 10_000)
	runtime := &musterv1.RuntimeStatus{
		Id: "c1", Pid: 7, ExitCode: 3, OomKilled: true,
		Health: &musterv1.Health{State: musterv1.Health_UNHEALTHY, FailedChecks: 2, Retries: 3, ExitCode: 1, Output: long},
	}
	got := bounds.Runtime(runtime)
	if runtime.Health.Output != long || len(got.Health.Output) > nodereport.MaxHealthOutput {
		t.Errorf("output of %d bytes, and the original of %d", len(got.Health.Output), len(runtime.Health.Output))
	}
	got.Health.Output = long
	if !proto.Equal(got, runtime) {
		t.Errorf("the copy is %v", got)
	}
	ports := []*musterv1.PortConfig{{Name: "a"}, {Name: long, Protocol: musterv1.PortConfig_UDP, TargetPort: 1, PublishedPort: 2, PublishMode: musterv1.PortConfig_HOST}}
	copied := bounds.Ports(ports)
	if ports[1].Name != long || len(copied[1].Name) > nodereport.MaxPortName || copied[0] != ports[0] {
		t.Errorf("ports: %v", copied)
	}
	copied[1].Name = long
	if !proto.Equal(copied[1], ports[1]) {
		t.Errorf("the copied port is %v", copied[1])
	}
}

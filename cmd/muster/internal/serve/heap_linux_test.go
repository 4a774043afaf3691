package serve

import (
	"os"
	"runtime"
	"testing"

	"github.com/prometheus/procfs"
)

// TestHeadroomTakesNoMemory holds headroom next to memory that was used and freed.
func TestHeadroomTakesNoMemory(t *testing.T) {
	t.Setenv("GOGC", "")
	used := make([][]byte, 64)
	for i := range used {
		used[i] = make([]byte, 32<<10)
		for j := range used[i] {
			used[i][j] = 1
		}
	}
	runtime.KeepAlive(used)
	runtime.GC()
	before := residentBytes(t)
	release := holdHeadroom()
	grown := residentBytes(t) - before
	release()
	if grown > headroom/4 {
		t.Errorf("resident memory grew by %d KiB, want next to nothing", grown>>10)
	}
}

func residentBytes(t *testing.T) int {
	t.Helper()
	p, err := procfs.NewProc(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	stat, err := p.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return stat.ResidentMemory()
}

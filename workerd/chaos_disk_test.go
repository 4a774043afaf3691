//go:build linux

package workerd_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"

	testdisk "github.com/musterhq/muster/test/kit/disk"
)

// TestWhateverHappensOnADiskThatFills is the same with a data directory that has no
// room at times: then new tasks wait, and nothing is lost, doubled or forgotten.
func TestWhateverHappensOnADiskThatFills(t *testing.T) {
	t.Parallel()
	for seed := range uint64(15) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			dir := testdisk.Small(t, 1<<20)
			synctest.Test(t, func(t *testing.T) {
				random := rand.New(rand.NewPCG(seed, 1))
				filler := filepath.Join(dir, "filler")
				chaos(t, random, dir, func(vexed bool) {
					err := os.Remove(filler)
					if errors.Is(err, fs.ErrNotExist) {
						err = nil
					}
					if vexed {
						err = errors.Join(err, testdisk.Fill(filler))
					}
					if err != nil {
						t.Error(err)
					}
				})
			})
		})
	}
}

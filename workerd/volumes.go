package workerd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/executor"
)

// mostVolumes and mostVolumeBytes bound what a node reports of its volumes.
const (
	mostVolumes     = 5_000
	mostVolumeBytes = 2 << 20
)

// volumes lists and removes the volumes of the node's executors.
type volumes struct {
	executors executor.Set
	node      string
}

// List returns the volumes of all executors, in order of name.
func (v volumes) List(ctx context.Context) ([]*musterv1.NodeVolume, error) {
	var (
		all  []*musterv1.NodeVolume
		errs []error
	)
	for name, keeper := range v.keepers(ctx) {
		found, err := keeper.Volumes(ctx, v.node)
		if err != nil {
			errs = append(errs, fmt.Errorf("executor %s: %w", name, err))
		}
		for _, one := range found {
			if !utf8.ValidString(one.GetName()) {
				continue
			}
			one = proto.CloneOf(one)
			one.Executor, one.Services, one.NodeId, one.NodeName = name, nil, "", ""
			all = append(all, one)
		}
	}
	slices.SortFunc(all, func(a, b *musterv1.NodeVolume) int {
		return strings.Compare(a.Name+"\x00"+a.Executor, b.Name+"\x00"+b.Executor)
	})
	size := 0
	for i, one := range all {
		if size += proto.Size(one); i >= mostVolumes || size > mostVolumeBytes {
			return all[:i], fmt.Errorf("the node has %d volumes, and the first %d are listed", len(all), i)
		}
	}
	return all, errors.Join(errs...)
}

// Remove removes a volume of each executor that has it.
func (v volumes) Remove(ctx context.Context, name string) error {
	none := &executor.Error{Code: codes.NotFound, Err: fmt.Errorf("the node has no volume %q", name)}
	removed := false
	for _, keeper := range v.keepers(ctx) {
		err := keeper.RemoveVolume(ctx, name)
		switch {
		case err == nil:
			removed = true
		case executor.ErrorOf(err).Code != codes.NotFound:
			return err
		}
	}
	if !removed {
		return none
	}
	return nil
}

// keepers returns the executors that have volumes, by name.
func (v volumes) keepers(ctx context.Context) map[string]executor.VolumeKeeper {
	all := map[string]executor.VolumeKeeper{}
	for _, d := range v.executors.Describe(ctx) {
		if keeper, ok := d.Executor.(executor.VolumeKeeper); ok && d.Can(executor.KeepsVolumes) {
			all[d.Name] = keeper
		}
	}
	return all
}

package apid

import (
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/apid/standing"
	"github.com/musterhq/muster/internal/shards"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

func (c *control) GetCluster(ctx context.Context, _ *musterv1.GetClusterRequest) (*musterv1.GetClusterResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	return &musterv1.GetClusterResponse{Cluster: c.clusterMessage()}, nil
}

func (c *control) UpdateCluster(ctx context.Context, req *musterv1.UpdateClusterRequest) (*musterv1.UpdateClusterResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	if err := c.validate.Cluster(req.Spec); err != nil {
		return nil, err
	}
	now := time.Now().UnixMilli()
	ctx, cancel := c.writing(ctx)
	defer cancel()
	err := c.update(ctx, func(tx *store.Tx) error {
		e, ok := c.tables.Clusters.Get(tx, state.ClusterID)
		if e.Version != req.Version {
			return stale("cluster", state.ClusterID, req.Version, e.Version)
		}
		created := now
		if ok {
			if proto.Equal(e.Value.Spec, req.Spec) {
				return errAlready
			}
			created = e.Value.CreatedAt
		}
		c.tables.Clusters.Put(tx, state.ClusterID, &recordv1.Cluster{Spec: req.Spec, CreatedAt: created, UpdatedAt: now})
		return nil
	})
	if err != nil {
		return nil, c.fail("update cluster", err)
	}
	return &musterv1.UpdateClusterResponse{Cluster: c.clusterMessage()}, nil
}

// clusterMessage adds to the settings who does the work.
func (c *control) clusterMessage() *musterv1.Cluster {
	var m *musterv1.Cluster
	c.view.Read(func(r *objects.Reader) { m = r.ClusterMessage(r.Cluster()) })
	m.Status.Version = c.member.Version
	for _, s := range c.directories {
		held := map[string][]uint32{}
		for shard, owner := range s.Owners() {
			held[owner.Instance] = append(held[owner.Instance], uint32(shard))
		}
		for _, member := range s.Members() {
			d := &musterv1.DaemonStatus{
				Daemon: member.Daemon, Instance: member.Instance, Address: member.Address, Version: member.Version,
			}
			if s.name != sweepSubsystem {
				d.Shards = held[member.Instance]
				slices.Sort(d.Shards)
			}
			m.Status.Daemons = append(m.Status.Daemons, d)
		}
	}
	return m
}

// lastKnown is the census of all subsystems as the directories have it.
func (d *Daemon) lastKnown() map[string]shards.Census {
	all := map[string]shards.Census{}
	for _, s := range d.directories {
		all[s.name] = s.Census()
	}
	return all
}

// GetClusterStatus is answered whatever is wrong: that is when it is asked for.
func (c *control) GetClusterStatus(ctx context.Context, _ *musterv1.GetClusterStatusRequest) (*musterv1.GetClusterStatusResponse, error) {
	resp := standing.Judge(c.looker.Look(ctx))
	resp.AnsweredBy = c.member.Instance
	if c.store.Standing().Loaded {
		c.view.Read(func(r *objects.Reader) { resp.Nodes = r.NodeSummary() })
	}
	return resp, nil
}

package simulation

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// apiDifferences returns the differences between the API and the records. It asks every
// replica of apid, because each has its own view.
func (p *picture) apiDifferences() []string {
	p.faults = nil
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	want := p.records()
	for _, name := range slices.Sorted(maps.Keys(p.users[0].conns)) {
		got, err := list(ctx, musterv1.NewControlServiceClient(p.users[0].conns[name]))
		if err != nil {
			p.fault("ask %s: %v", name, err)
			continue
		}
		for id, is := range want {
			if got[id] != is {
				p.fault("%s shows %s as %q, want %q", name, id, got[id], is)
			}
		}
		for id, said := range got {
			if want[id] == "" {
				p.fault("%s shows %s as %q, but it does not exist", name, id, said)
			}
		}
	}
	return p.faults
}

// records returns what apid should show for each service and task, by id.
func (p *picture) records() map[string]string {
	all := map[string]string{}
	for id, s := range p.services {
		all[id] = aService(s.Spec)
	}
	for e := range p.observer.tables.Configs.Scan(p.now, "") {
		all[e.Key] = aConfig(e.Value.Spec)
	}
	for _, tasks := range p.tasks {
		for _, t := range tasks {
			all[t.ID] = aTask(t.ServiceID, cmp.Or(t.NodeID, t.Record.NodeId), t.Desired(), t.State())
		}
	}
	return all
}

func aService(s *musterv1.ServiceSpec) string {
	return fmt.Sprintf("service %s, revision %s, %d replicas", s.Name, s.Labels[revisionLabel], s.GetReplicated().GetReplicas())
}

func aConfig(s *musterv1.ConfigSpec) string {
	return fmt.Sprintf("config %s, revision %s", s.Name, s.Labels[revisionLabel])
}

func aTask(service, node string, desired, state musterv1.TaskState) string {
	return fmt.Sprintf("task of %s on %s, desired %v, %v", service, node, desired, state)
}

// list lists all services, configs and tasks.
func list(ctx context.Context, api musterv1.ControlServiceClient) (map[string]string, error) {
	all := map[string]string{}
	for page := ""; ; {
		res, err := api.ListServices(ctx, &musterv1.ListServicesRequest{PageToken: page})
		if err != nil {
			return nil, fmt.Errorf("list services: %w", err)
		}
		for _, s := range res.Services {
			all[s.Id] = aService(s.Spec)
		}
		if page = res.NextPageToken; page == "" {
			break
		}
	}
	for page := ""; ; {
		res, err := api.ListConfigs(ctx, &musterv1.ListConfigsRequest{PageToken: page})
		if err != nil {
			return nil, fmt.Errorf("list configs: %w", err)
		}
		for _, c := range res.Configs {
			all[c.Id] = aConfig(c.Spec)
		}
		if page = res.NextPageToken; page == "" {
			break
		}
	}
	for page := ""; ; {
		res, err := api.ListTasks(ctx, &musterv1.ListTasksRequest{PageToken: page, PageSize: 1000})
		if err != nil {
			return nil, fmt.Errorf("list tasks: %w", err)
		}
		for _, t := range res.Tasks {
			all[t.Id] = aTask(t.ServiceId, t.NodeId, t.DesiredState, t.GetStatus().GetState())
		}
		if page = res.NextPageToken; page == "" {
			return all, nil
		}
	}
}

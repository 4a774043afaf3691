package stack

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/backoff"
)

const firstPause, longestPause = 50 * time.Millisecond, time.Second

// Remove removes a stack and waits until everything is gone: the services that depend on
// others first, then, when no task is left, what the services used, then the revisions. It
// tells progress of each object, which may be nil. After an error, the same call continues.
//
// From its beginning, no deployment can create an object of the stack. One that is under way
// ends with ErrConflict, and a later one finishes the removal before it begins. ErrNotFound
// says that there is nothing to remove.
func Remove(ctx context.Context, client Client, name string, progress func(Change)) error {
	stored, err := find(ctx, client, name)
	if err != nil {
		return err
	}
	if stored != nil {
		if gone, err := drop(ctx, client, stored); gone || err != nil {
			return err
		}
	}
	pause := backoff.New(firstPause, longestPause)
	for {
		have, err := read(ctx, client, name)
		if err != nil {
			return err
		}
		if stored == nil {
			if have.count() == 0 {
				return fmt.Errorf("%w: %q", ErrNotFound, name)
			}
			return removeAll(ctx, client, have, progress)
		}
		// While the stack is marked, objects cannot be created. So all that was read are
		// its own, unless another client has removed it, and it was deployed again.
		if now, err := find(ctx, client, name); err != nil || now.GetId() != stored.Id {
			return err
		}
		if err := removeAll(ctx, client, have, progress); err != nil {
			return err
		}
		// A deployment may have created something between the first look and the mark.
		if gone, err := drop(ctx, client, stored); gone || err != nil {
			return err
		}
		if err := pause.Wait(ctx); err != nil {
			return fmt.Errorf("wait for the objects of stack %q: %w", name, err)
		}
	}
}

// drop removes what is stored of a stack, or marks it as being removed while it has objects.
func drop(ctx context.Context, client Client, s *musterv1.Stack) (gone bool, err error) {
	resp, err := client.RemoveStack(ctx, &musterv1.RemoveStackRequest{Stack: s.Id})
	if status.Code(err) == codes.NotFound {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("remove stack %q: %w", s.Spec.GetName(), err)
	}
	return resp.Objects == 0, nil
}

// removeAll removes objects, and waits for the tasks of services before it removes what
// they used.
func removeAll(ctx context.Context, client Client, have *objects, progress func(Change)) error {
	var stopping []string
	for _, c := range removals(have) {
		if c.Kind != "service" {
			if err := untilStopped(ctx, client, stopping); err != nil {
				return err
			}
			stopping = nil
		}
		if err := c.remove(ctx, client); err != nil {
			return fmt.Errorf("remove %s %q: %w", c.Kind, c.Name, err)
		}
		if c.Kind == "service" {
			stopping = append(stopping, c.id)
		}
		if progress != nil {
			progress(c)
		}
	}
	return untilStopped(ctx, client, stopping)
}

// untilStopped waits until services that were removed have no tasks.
func untilStopped(ctx context.Context, client Client, ids []string) error {
	pause := backoff.New(firstPause, longestPause)
	for len(ids) > 0 {
		left, err := client.ListTasks(ctx, &musterv1.ListTasksRequest{Services: ids[:1], PageSize: 1})
		switch {
		case status.Code(err) == codes.NotFound, err == nil && len(left.Tasks) == 0:
			ids = ids[1:]
			continue
		case err != nil:
			return fmt.Errorf("wait for tasks to stop: %w", err)
		}
		if err := pause.Wait(ctx); err != nil {
			return fmt.Errorf("wait for tasks to stop: %w", err)
		}
	}
	return nil
}

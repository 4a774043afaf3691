package networks

import (
	"container/list"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/musterhq/muster/dispatcherd/internal/assignments"
)

// fewWithdrawn is the number of withdrawn members that a feed keeps anyway.
const fewWithdrawn = 64

// feed holds the members of one network in the order of their last changes. Each change
// has a number, and each reader the number up to which it has read. So a reader finds
// what it has not read at the end of the order, each member once and in its newest
// state, however often it changed.
type feed struct {
	// id is the network's.
	id string
	// newest is the number of the last change.
	newest uint64
	// order holds all members, by number.
	order   list.List
	members map[memberKey]*list.Element
	// backends holds the tasks of a service that are members, withdrawn ones too, and live
	// the number of those that are there.
	backends map[string]map[string]struct{}
	live     map[string]int
	// withdrawn is the number of withdrawn members. They are kept until all readers know
	// that they are gone. When there are more than compactAt, that is found out.
	withdrawn, compactAt int
	readers              map[*reader]struct{}
	// published is the number up to which changes must reach the readers now.
	published uint64
	// batches are what was read since the last publication, by the number from which on.
	// Sessions share them.
	batches map[uint64]batch
}

// memberKey names a peer by its node, a service by its id, and a backend by its service
// and task.
type memberKey struct{ node, service, task string }

// member is an entry of a feed's order.
type member struct {
	key    memberKey
	number uint64
	// born is the number of the change that brought the member.
	born uint64
	// message is a Peer, a Service or a Backend. It is nil if the member is withdrawn.
	message proto.Message
	// at is when a task reported what made the change, in Unix milliseconds; 0 if it was
	// something else.
	at int64
}

func newFeed(network string) feed {
	return feed{
		id: network, members: map[memberKey]*list.Element{}, backends: map[string]map[string]struct{}{}, live: map[string]int{},
		readers: map[*reader]struct{}{}, compactAt: fewWithdrawn,
	}
}

// set makes a member consist of a message, or withdraws it if the message is nil. A
// message that says nothing new is no change.
func (f *feed) set(key memberKey, message proto.Message, at int64) {
	e := f.members[key]
	var have *member
	if e != nil {
		have = e.Value.(*member)
	}
	switch {
	case message == nil && (have == nil || have.message == nil):
		return
	case message == nil:
		f.withdraw(e)
	case have == nil:
		f.newest++
		f.members[key] = f.order.PushBack(&member{key: key, number: f.newest, born: f.newest, message: message, at: at})
		if key.task != "" {
			tasks := f.backends[key.service]
			if tasks == nil {
				tasks = map[string]struct{}{}
				f.backends[key.service] = tasks
			}
			tasks[key.task] = struct{}{}
		}
		f.appeared(key)
	case have.message == nil:
		f.withdrawn--
		f.move(e)
		have.message, have.at, have.born = message, at, have.number
		f.appeared(key)
	case !proto.Equal(have.message, message):
		f.move(e)
		have.message, have.at = message, at
	}
}

// move makes a member's change the newest.
func (f *feed) move(e *list.Element) {
	f.newest++
	e.Value.(*member).number = f.newest
	f.order.MoveToBack(e)
}

// appeared sends the backends of a service that is there again with it. Readers
// have passed them over.
func (f *feed) appeared(key memberKey) {
	if key.task != "" {
		f.live[key.service]++
	}
	if key.service == "" || key.task != "" {
		return
	}
	for task := range f.backends[key.service] {
		e := f.members[memberKey{service: key.service, task: task}]
		f.move(e)
		e.Value.(*member).at = 0
	}
}

func (f *feed) withdraw(e *list.Element) {
	m := e.Value.(*member)
	m.message, m.at = nil, 0
	f.move(e)
	f.withdrawn++
	if m.key.task != "" {
		if f.live[m.key.service]--; f.live[m.key.service] == 0 {
			delete(f.live, m.key.service)
		}
	}
	if m.key.service != "" && m.key.task == "" {
		// The backends that are gone are withdrawn with the service.
		for task := range f.backends[m.key.service] {
			if b := f.members[memberKey{service: m.key.service, task: task}]; b.Value.(*member).message == nil {
				f.forget(b)
			}
		}
	}
	if f.withdrawn > f.compactAt {
		f.compact()
	}
}

// compact forgets the withdrawn members of which all readers know that they are gone.
func (f *feed) compact() {
	read := f.newest
	for r := range f.readers {
		if r.number > 0 { // a new reader needs none of them
			read = min(read, r.number)
		}
	}
	var next *list.Element
	for e := f.order.Front(); e != nil && e.Value.(*member).number <= read; e = next {
		next = e.Next()
		if e.Value.(*member).message == nil {
			f.forget(e)
		}
	}
	// The next time is when there are as many again, so that this costs little for
	// each change.
	f.compactAt = max(fewWithdrawn, 2*f.withdrawn, f.order.Len()-f.withdrawn)
}

// forget removes a withdrawn member.
func (f *feed) forget(e *list.Element) {
	key := e.Value.(*member).key
	f.order.Remove(e)
	delete(f.members, key)
	f.withdrawn--
	if key.task != "" {
		tasks := f.backends[key.service]
		if delete(tasks, key.task); len(tasks) == 0 {
			delete(f.backends, key.service)
		}
	}
}

// has reports whether a member is there.
func (f *feed) has(key memberKey) bool {
	e := f.members[key]
	return e != nil && e.Value.(*member).message != nil
}

// publish lets the readers have all changes. It returns how many they are.
func (f *feed) publish() (changes uint64) {
	changes = f.newest - f.published
	f.published, f.batches = f.newest, nil
	return changes
}

// since returns what has changed after a number, and the number up to which that is so.
// After 0 that is everything that is there. It returns nothing to a reader that has
// read what is published. All readers of a publication that have read the same get the
// same batch, and can again get the same one next time.
func (f *feed) since(number uint64) (b batch, read uint64) {
	if number == f.newest || number > 0 && number >= f.published {
		return batch{}, number
	}
	// A new reader must not miss that a member was withdrawn: see compact.
	if b, ok := f.batches[number]; ok && (number > 0 || b.read == f.newest) {
		return b, b.read
	}
	var changed []*member
	for e := f.order.Back(); e != nil && e.Value.(*member).number > number; e = e.Prev() {
		m := e.Value.(*member)
		if m.message == nil && number == 0 || m.key.task != "" && !f.has(memberKey{service: m.key.service}) {
			continue
		}
		changed = append(changed, m)
	}
	slices.Reverse(changed)
	if f.batches == nil {
		f.batches = map[uint64]batch{}
	}
	b = f.pack(changed, number)
	b.read = f.newest
	f.batches[number] = b
	return b, b.read
}

// reader reads the feed of a network for a session of a node.
type reader struct {
	index  *Index
	feed   *feed
	node   string
	number uint64
}

// Next implements [assignments.MemberReader].
func (r *reader) Next() []assignments.MemberChange {
	r.index.mu.Lock()
	defer r.index.mu.Unlock()
	var b batch
	b, r.number = r.feed.since(r.number)
	return b.without(r.node)
}

// Close implements [assignments.MemberReader].
func (r *reader) Close() {
	r.index.mu.Lock()
	defer r.index.mu.Unlock()
	delete(r.feed.readers, r)
}

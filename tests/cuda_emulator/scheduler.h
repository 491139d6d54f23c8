// Threads of a CUDA block as fibers on one CPU thread. A fiber runs until it must wait for others (a barrier, an operation
// of its warp) or ends; then the next one runs, in an order that can be chosen. So every run repeats exactly, and code
// that forgets a barrier gives other results in another order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <sys/mman.h>
#include <ucontext.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#include <link.h>
#endif

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
    uint64_t count() const { return uint64_t(x) * y * z; }
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace cuda_emulator {

constexpr unsigned kWarp = 32, kMostThreads = 1024;
constexpr size_t kPage = 4096, kStack = 64 * kPage;
constexpr int kPoison = 0xFF;  // NaN as a floating-point number, -1 as an integer
constexpr unsigned kPoisonedBlocks = 64;  // of a launch, since all shared memory of the library is filled for each

// Where in the sources a thread waits.
struct Site {
    const char* file;
    int line;

    bool operator==(const Site& other) const { return line == other.line && std::strcmp(file, other.file) == 0; }
    std::string text() const { return std::string(file) + ":" + std::to_string(line); }
};

enum class State { kReady, kAtBarrier, kInWarp, kEnded };

#if defined(__x86_64__) && !defined(CUDA_EMULATOR_UCONTEXT)

// Saves the registers that a function must preserve, and goes on with another stack. As a system call would be needed for
// each, ucontext's switch takes fifty times as long.
struct Context {
    void* stack_pointer = nullptr;

    __attribute__((naked, noipa)) static void swap(void** /*from*/, void* /*to*/) {
        asm("push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
            "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
            "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret");
    }
    void switch_to(const Context& next) { swap(&stack_pointer, next.stack_pointer); }
    void prepare(char* stack, size_t size, void (*entry)()) {
        void** top = reinterpret_cast<void**>(stack + size) - 2;
        *top = reinterpret_cast<void*>(entry);
        stack_pointer = top - 6;  // the registers, whose values do not matter
    }
};

#else

struct Context {
    ucontext_t context;

    void switch_to(const Context& next) { swapcontext(&context, &next.context); }
    void prepare(char* stack, size_t size, void (*entry)()) {
        getcontext(&context);
        context.uc_stack.ss_sp = stack;
        context.uc_stack.ss_size = size;
        context.uc_link = nullptr;
        makecontext(&context, entry, 0);
    }
};

#endif

struct Thread {
    Context context;
    State state = State::kEnded;
    Site site{"", 0};
    unsigned mask = 0;  // the lanes that a warp's operation waits for
    unsigned turn = 0;  // counts the warp's operations
    void* fake_stack = nullptr;
    alignas(8) unsigned char slots[2][8];  // what it gives to the other lanes; two, as the others may read the one before
};

enum class Order { kForward, kReversed, kShuffled };

// One launch of a kernel after the other; nothing here is used from two threads at once.
class Machine {
public:
    Order order = Order::kForward;
    uint64_t seed = 0;
    int status = 0;       // of the last launch that failed, until it is asked for
    std::string message;  // what went wrong

    void launch(dim3 grid, dim3 block, size_t shared, const std::function<void()>& kernel) {
        kernel_ = &kernel;
        gridDim = grid;
        blockDim = block;
        random_.seed(seed);
        dynamic_.reset(new char[shared]);
        unsigned poisoned = 0;
        for (const uint64_t number : permutation(grid.count())) {
            if (poisoned++ < kPoisonedBlocks) {
                std::memset(dynamic_.get(), kPoison, shared);
                poison_shared();
            }
            blockIdx = place(number, grid);
            if (!run_block()) break;
        }
        dynamic_.reset();
    }

    char* dynamic_shared() const { return dynamic_.get(); }
    Thread& current() { return *current_; }
    Thread& lane(unsigned index) { return threads_[number_of(current()) / kWarp * kWarp + index]; }
    unsigned lane_id() const { return number_of(*current_) % kWarp; }
    unsigned lanes() const {  // of the warp of the thread that runs: the last one may not be full
        const unsigned first = number_of(*current_) / kWarp * kWarp;
        return count_ - first < kWarp ? count_ - first : kWarp;
    }

    // Lets others run until what the thread waits for has happened.
    void wait(State state, Site site, unsigned mask = 0) {
        current_->state = state;
        current_->site = site;
        current_->mask = mask;
        leave(&current_->fake_stack);
    }

    // Ends the launch from inside a kernel.
    [[noreturn]] void fail(const std::string& what) {
        report(what);
        for (;;) wait(State::kEnded, {"", 0});
    }

private:
    const std::function<void()>* kernel_ = nullptr;
    std::unique_ptr<char[]> dynamic_;
    std::vector<Thread> threads_ = std::vector<Thread>(kMostThreads);
    Thread* current_ = nullptr;
    Context scheduler_;
    char* stacks_ = nullptr;
    unsigned count_ = 0;
    bool failed_ = false;
    std::mt19937_64 random_;
    const void* scheduler_stack_ = nullptr;
    size_t scheduler_size_ = 0;

    unsigned number_of(const Thread& thread) const { return static_cast<unsigned>(&thread - threads_.data()); }

    static uint3 place(uint64_t number, dim3 size) {
        return {static_cast<unsigned>(number % size.x), static_cast<unsigned>(number / size.x % size.y),
                static_cast<unsigned>(number / size.x / size.y)};
    }

    std::vector<uint64_t> permutation(uint64_t n) {
        std::vector<uint64_t> numbers(n);
        for (uint64_t i = 0; i < n; ++i) numbers[i] = order == Order::kReversed ? n - 1 - i : i;
        if (order == Order::kShuffled)
            for (uint64_t i = n; i > 1; --i) std::swap(numbers[i - 1], numbers[random_() % i]);
        return numbers;
    }

    void report(const std::string& what) {
        failed_ = true;
        if (status == 0) message = what;
        status = 719;  // cudaErrorLaunchFailure
    }

    char* stack_of(unsigned number) {
        if (stacks_ == nullptr) {
            void* memory = mmap(nullptr, kStack * kMostThreads, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (memory == MAP_FAILED) {
                std::perror("CUDA emulator: no memory for stacks");
                std::abort();
            }
            stacks_ = static_cast<char*>(memory);
            for (unsigned i = 0; i < kMostThreads; ++i) mprotect(stacks_ + i * kStack, kPage, PROT_NONE);
        }
        return stacks_ + number * kStack + kPage;
    }

    bool run_block() {
        failed_ = false;
        count_ = static_cast<unsigned>(blockDim.count());
        const std::vector<uint64_t> turns = permutation(count_);
        for (unsigned i = 0; i < count_; ++i) {
            char* stack = stack_of(i);
#if defined(__SANITIZE_ADDRESS__)
            __asan_unpoison_memory_region(stack, kStack - kPage);
#endif
            threads_[i].context.prepare(stack, kStack - kPage, &Machine::entry);
            threads_[i].state = State::kReady;
            threads_[i].turn = 0;
        }
        for (;;) {
            bool ran = false;
            for (const uint64_t number : turns) {
                if (threads_[number].state != State::kReady) continue;
                ran = true;
                enter(threads_[number]);
                if (failed_) return false;
            }
            const bool released = release_warps();
            if (ran || released) continue;
            if (!release_barrier()) return !failed_;
        }
    }

    // Warps of which all lanes that an operation waits for have arrived at it.
    bool release_warps() {
        bool any = false;
        for (unsigned i = 0; i < count_; ++i) {
            const Thread& thread = threads_[i];
            if (thread.state != State::kInWarp) continue;
            const unsigned first = i / kWarp * kWarp;
            bool complete = true;
            for (unsigned lane = 0; lane < kWarp && complete; ++lane) {
                if (!(thread.mask >> lane & 1)) continue;
                const Thread& other = threads_[(first + lane) % kMostThreads];
                complete = first + lane < count_ && other.state == State::kInWarp && other.mask == thread.mask &&
                           other.site == thread.site;
            }
            if (!complete) continue;
            const unsigned mask = thread.mask;
            for (unsigned lane = 0; lane < kWarp; ++lane)
                if (mask >> lane & 1) threads_[first + lane].state = State::kReady;
            any = true;
        }
        return any;
    }

    // Whether threads waited for the whole block; nobody else can run.
    bool release_barrier() {
        const Thread* first = nullptr;
        for (unsigned i = 0; i < count_; ++i) {
            const Thread& thread = threads_[i];
            if (thread.state == State::kEnded) continue;
            if (first == nullptr) first = &thread;
            if (thread.state != first->state || !(thread.site == first->site) || thread.state == State::kInWarp) {
                report("threads wait for each other: " + waiting(*first) + ", " + waiting(thread));
                return false;
            }
        }
        for (unsigned i = 0; i < count_; ++i)
            if (threads_[i].state == State::kAtBarrier) threads_[i].state = State::kReady;
        return first != nullptr;
    }

    std::string waiting(const Thread& thread) const {
        return "thread " + std::to_string(number_of(thread)) +
               (thread.state == State::kInWarp ? " for its warp at " : " for its block at ") + thread.site.text();
    }

    void enter(Thread& thread) {
        current_ = &thread;
        threadIdx = place(number_of(thread), blockDim);
#if defined(__SANITIZE_ADDRESS__)
        void* fake_stack = nullptr;
        __sanitizer_start_switch_fiber(&fake_stack, stack_of(number_of(thread)), kStack - kPage);
#endif
        scheduler_.switch_to(thread.context);
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
    }

    void leave([[maybe_unused]] void** fake_stack) {
        Thread& thread = *current_;
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_start_switch_fiber(fake_stack, scheduler_stack_, scheduler_size_);
#endif
        thread.context.switch_to(scheduler_);
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(*fake_stack, &scheduler_stack_, &scheduler_size_);
#endif
    }

    static void entry();

#if defined(__SANITIZE_ADDRESS__)
    void poison_shared() {}
#else
    // Shared memory is thread-local memory of this library: see `__shared__`.
    static int fill_if_own(dl_phdr_info* info, size_t, void* address) {
        for (int i = 0; i < info->dlpi_phnum; ++i) {
            const auto& part = info->dlpi_phdr[i];
            char* begin = static_cast<char*>(info->dlpi_tls_data);
            if (part.p_type != PT_TLS || begin == nullptr) continue;
            if (address < begin || address >= begin + part.p_memsz) continue;
            std::memset(begin, kPoison, part.p_memsz);
            return 1;
        }
        return 0;
    }
    void poison_shared() {
        static thread_local char anywhere;
        char* volatile address = &anywhere;
        dl_iterate_phdr(&fill_if_own, address);
    }
#endif
};

inline Machine machine;

inline void Machine::entry() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &machine.scheduler_stack_, &machine.scheduler_size_);
#endif
    (*machine.kernel_)();
    machine.current_->state = State::kEnded;
    machine.leave(nullptr);
}

}  // namespace cuda_emulator

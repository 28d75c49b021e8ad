//! Every lock, atomic and thread type of the workspace, under one name for both worlds:
//! parking_lot and std in normal builds, shuttle's under `--cfg shuttle`.
//!
//! The interface is parking_lot's: `lock` returns a guard, there is no poisoning.

#[cfg(not(shuttle))]
mod real {
    pub use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
    pub use std::sync::{Arc, Weak};
    pub use std::thread_local;

    /// Atomics.
    pub mod atomic {
        pub use std::sync::atomic::{
            AtomicBool, AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize,
            Ordering, fence,
        };
    }

    /// Threads.
    pub mod thread {
        #[cfg(sanitized = "thread")]
        pub use super::sanitized::scope;
        #[cfg(not(sanitized = "thread"))]
        pub use std::thread::scope;
        pub use std::thread::{JoinHandle, current, yield_now};

        /// Starts a thread named `name`.
        ///
        /// # Errors
        ///
        /// The operating system can't start another thread.
        pub fn spawn<F, T>(name: &str, body: F) -> std::io::Result<JoinHandle<T>>
        where
            F: FnOnce() -> T + Send + 'static,
            T: Send + 'static,
        {
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(body)
        }
    }

    /// Scopes of threads whose end the thread sanitizer sees. It watches nothing within the standard
    /// library, where who leaves a scope waits for its threads.
    #[cfg(sanitized = "thread")]
    mod sanitized {
        use std::sync::atomic::{AtomicU64, Ordering};
        use std::thread;

        /// Threads of scopes that have ended: they release it, and who has waited for them acquires it.
        static ENDED: AtomicU64 = AtomicU64::new(0);

        struct End;

        impl Drop for End {
            fn drop(&mut self) {
                ENDED.fetch_add(1, Ordering::Release);
            }
        }

        /// A scope to start threads in.
        #[derive(Clone, Copy, Debug)]
        pub struct Scope<'scope, 'env>(&'scope thread::Scope<'scope, 'env>);

        /// As std's.
        pub fn scope<'env, F, T>(body: F) -> T
        where
            F: for<'scope> FnOnce(Scope<'scope, 'env>) -> T,
        {
            let result = thread::scope(|scope| body(Scope(scope)));
            ENDED.load(Ordering::Acquire);
            result
        }

        impl<'scope> Scope<'scope, '_> {
            /// As std's.
            pub fn spawn<F, T>(self, body: F) -> thread::ScopedJoinHandle<'scope, T>
            where
                F: FnOnce() -> T + Send + 'scope,
                T: Send + 'scope,
            {
                self.0.spawn(|| {
                    let _end = End;
                    body()
                })
            }
        }
    }
}

#[cfg(shuttle)]
mod real {
    use std::ops::{Deref, DerefMut};

    pub use shuttle::sync::{Arc, Weak};
    pub use shuttle::thread_local;

    /// Atomics.
    pub mod atomic {
        pub use shuttle::sync::atomic::{
            AtomicBool, AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize,
            Ordering, fence,
        };
    }

    /// Threads.
    pub mod thread {
        pub use shuttle::thread::{JoinHandle, current, scope, yield_now};

        /// Starts a thread named `name`.
        ///
        /// # Errors
        ///
        /// None under shuttle.
        pub fn spawn<F, T>(name: &str, body: F) -> std::io::Result<JoinHandle<T>>
        where
            F: FnOnce() -> T + Send + 'static,
            T: Send + 'static,
        {
            shuttle::thread::Builder::new()
                .name(name.to_owned())
                .spawn(body)
        }
    }

    /// A mutex in parking_lot's shape on shuttle's.
    #[derive(Debug, Default)]
    pub struct Mutex<T>(shuttle::sync::Mutex<T>);

    /// The guard of a [`Mutex`].
    #[derive(Debug)]
    pub struct MutexGuard<'a, T>(Option<shuttle::sync::MutexGuard<'a, T>>);

    impl<T> Mutex<T> {
        /// A mutex around `value`.
        pub fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        /// Takes the lock, waiting for it.
        pub fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard(Some(
                self.0
                    .lock()
                    .expect("no poisoning: a panic ends the schedule"),
            ))
        }

        /// Takes the lock if it is free.
        pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().ok().map(|guard| MutexGuard(Some(guard)))
        }

        /// The value, with no lock.
        pub fn get_mut(&mut self) -> &mut T {
            self.0
                .get_mut()
                .expect("no poisoning: a panic ends the schedule")
        }

        /// The value.
        pub fn into_inner(self) -> T {
            self.0
                .into_inner()
                .expect("no poisoning: a panic ends the schedule")
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;
        fn deref(&self) -> &T {
            self.0
                .as_ref()
                .expect("a guard is empty only inside Condvar::wait")
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0
                .as_mut()
                .expect("a guard is empty only inside Condvar::wait")
        }
    }

    /// A condition variable in parking_lot's shape on shuttle's.
    #[derive(Debug, Default)]
    pub struct Condvar(shuttle::sync::Condvar);

    impl Condvar {
        /// A condition variable.
        pub fn new() -> Self {
            Self(shuttle::sync::Condvar::new())
        }

        /// Gives the lock up, waits to be notified, takes it again.
        pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            let inner = guard
                .0
                .take()
                .expect("a guard is empty only inside Condvar::wait");
            guard.0 = Some(
                self.0
                    .wait(inner)
                    .expect("no poisoning: a panic ends the schedule"),
            );
        }

        /// Wakes one waiter.
        pub fn notify_one(&self) {
            self.0.notify_one();
        }

        /// Wakes every waiter.
        pub fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    /// A reader-writer lock in parking_lot's shape on shuttle's.
    #[derive(Debug, Default)]
    pub struct RwLock<T>(shuttle::sync::RwLock<T>);

    /// Shared access to a [`RwLock`].
    pub type RwLockReadGuard<'a, T> = shuttle::sync::RwLockReadGuard<'a, T>;
    /// Exclusive access to a [`RwLock`].
    #[derive(Debug)]
    pub struct RwLockWriteGuard<'a, T>(shuttle::sync::RwLockWriteGuard<'a, T>);

    impl<T> RwLockWriteGuard<'_, T> {
        /// Releases the lock. Who is next is the scheduler's choice.
        pub fn unlock_fair(guard: Self) {
            drop(guard);
        }
    }

    impl<T> Deref for RwLockWriteGuard<'_, T> {
        type Target = T;
        fn deref(&self) -> &T {
            &self.0
        }
    }

    impl<T> DerefMut for RwLockWriteGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            &mut self.0
        }
    }

    impl<T> RwLock<T> {
        /// A lock around `value`.
        pub fn new(value: T) -> Self {
            Self(shuttle::sync::RwLock::new(value))
        }

        /// Takes the lock shared.
        pub fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0
                .read()
                .expect("no poisoning: a panic ends the schedule")
        }

        /// Takes the lock exclusively.
        pub fn write(&self) -> RwLockWriteGuard<'_, T> {
            RwLockWriteGuard(
                self.0
                    .write()
                    .expect("no poisoning: a panic ends the schedule"),
            )
        }

        /// Takes the lock shared if that needs no wait.
        pub fn try_read(&self) -> Option<RwLockReadGuard<'_, T>> {
            self.0.try_read().ok()
        }

        /// Takes the lock exclusively if that needs no wait.
        pub fn try_write(&self) -> Option<RwLockWriteGuard<'_, T>> {
            self.0.try_write().ok().map(RwLockWriteGuard)
        }

        /// The value, with no lock.
        pub fn get_mut(&mut self) -> &mut T {
            self.0
                .get_mut()
                .expect("no poisoning: a panic ends the schedule")
        }
    }
}

pub use real::*;

/// Atomics to make from raw memory that others may write meanwhile: the machine's own in both
/// worlds, since a scheduler's atomics have another layout.
pub mod shared_memory {
    pub use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
}
